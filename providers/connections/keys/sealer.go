package keys

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// A sealed message is, in this order: the version of the layout (1 byte), the id of the key (8 bytes),
// a random nonce (12 bytes), and the ciphertext with its tag. Version and id are authenticated.
const (
	idSize    = 8
	nonceSize = 12
	tagSize   = 16
	version   = 1
	headSize  = 1 + idSize

	// Overhead is how much longer a sealed message is than a plain one.
	Overhead = headSize + nonceSize + tagSize
)

var (
	// ErrUnknownKey is a message that was sealed with a key that is not here.
	ErrUnknownKey = errors.New("unknown key")
	// ErrDamaged is a message that is not what was sealed, or not for this purpose.
	ErrDamaged = errors.New("damaged, or not sealed for this purpose")
)

// Sealer seals messages of one purpose with AES-256-GCM. It may be used from several goroutines.
type Sealer struct {
	current [idSize]byte
	aeads   map[[idSize]byte]cipher.AEAD
	names   []byte // subkey for Pseudonym
	ids     []string
}

// Sealer is for the purpose that label names: what it seals cannot be opened by that of another.
func (r *Ring) Sealer(label string) *Sealer {
	s := &Sealer{
		current: r.keys[0].id, aeads: map[[idSize]byte]cipher.AEAD{},
		names: r.keys[0].subkey(label + "\x00names"), ids: r.IDs(),
	}
	for _, k := range r.keys {
		s.aeads[k.id] = newAEAD(k.subkey(label))
	}
	return s
}

func newAEAD(subkey []byte) cipher.AEAD {
	block, err := aes.NewCipher(subkey)
	if err == nil {
		var a cipher.AEAD
		if a, err = cipher.NewGCMWithRandomNonce(block); err == nil {
			return a
		}
	}
	panic(err) // only for a key of a wrong size, and that size is constant
}

// KeyID is the name of the key that Seal uses.
func (s *Sealer) KeyID() string { return hex.EncodeToString(s.current[:]) }

// Pseudonym names b without telling anything of it to whoever lacks the key, not even whether a guess
// is right. It is another one as soon as another key seals.
func (s *Sealer) Pseudonym(b []byte) string {
	h := hmac.New(sha256.New, s.names)
	h.Write(b)
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// Seal encrypts plain and binds it to what aad says: it opens with the same aad only.
func (s *Sealer) Seal(plain, aad []byte) []byte {
	out := make([]byte, headSize, len(plain)+Overhead)
	out[0] = version
	copy(out[1:], s.current[:])
	return s.aeads[s.current].Seal(out, nil, plain, bind(out, aad))
}

// Open is the inverse of Seal. The error is ErrUnknownKey, which names the keys, or ErrDamaged.
func (s *Sealer) Open(sealed, aad []byte) ([]byte, error) {
	if len(sealed) < Overhead || sealed[0] != version {
		return nil, fmt.Errorf("keys: open: %w", ErrDamaged)
	}
	id := [idSize]byte(sealed[1:headSize])
	a, ok := s.aeads[id]
	if !ok {
		return nil, fmt.Errorf("keys: open: %w: it was sealed with %x, and here is %s", ErrUnknownKey, id, strings.Join(s.ids, ", "))
	}
	plain, err := a.Open(nil, nil, sealed[headSize:], bind(sealed[:headSize], aad))
	if err != nil {
		return nil, fmt.Errorf("keys: open with %x: %w", id, ErrDamaged)
	}
	return plain, nil
}

// bind is what a message is authenticated with. The head has a constant length, so that no two pairs
// of head and aad give the same bytes.
func bind(head, aad []byte) []byte {
	return append(append(make([]byte, 0, headSize+len(aad)), head...), aad...)
}
