package ovf

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"strings"

	"hypersdk/formats"
)

// Signer signs manifests.
type Signer struct {
	Key   crypto.Signer       // of an RSA key
	Chain []*x509.Certificate // that of the key first
	Hash  crypto.Hash         // 0: SHA-256
}

func (s Signer) hash() crypto.Hash {
	if s.Hash == 0 {
		return crypto.SHA256
	}
	return s.Hash
}

func (s Signer) check() error {
	public, ok := s.Key.Public().(*rsa.PublicKey)
	if !ok {
		return fmt.Errorf("ovf: sign with a key of type %T: packages are signed with RSA: %w", s.Key.Public(), formats.ErrFormat)
	}
	if len(s.Chain) == 0 || !public.Equal(s.Chain[0].PublicKey) {
		return fmt.Errorf("ovf: sign: the first certificate is not that of the key: %w", formats.ErrFormat)
	}
	if hashName(s.hash()) == "" || !s.hash().Available() {
		return fmt.Errorf("ovf: sign with %v: %w", s.hash(), formats.ErrFormat)
	}
	return nil
}

// Certificate makes the certificate file of a manifest that has that name: the signature of the
// manifest's sum (RSASSA-PKCS1-v1_5) and the certificates that it can be verified with.
func (s Signer) Certificate(name string, manifest []byte) ([]byte, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	h := s.hash().New()
	h.Write(manifest)
	sig, err := s.Key.Sign(rand.Reader, h.Sum(nil), s.hash())
	if err != nil {
		return nil, fmt.Errorf("ovf: sign: %w", err)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s(%s)= %x\n", hashName(s.hash()), name, sig)
	for _, c := range s.Chain {
		if err := pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}); err != nil {
			return nil, fmt.Errorf("ovf: sign: %w", err)
		}
	}
	return b.Bytes(), nil
}

// VerifyCertificate says whether a certificate file signs a manifest, and answers its certificates,
// that of the signer first. Whether the signer is trusted is for the caller to decide.
func VerifyCertificate(certificate []byte, name string, manifest []byte) ([]*x509.Certificate, error) {
	line, rest, _ := bytes.Cut(certificate, []byte("\n"))
	algorithm, sig, err := parseSignature(string(line), name)
	if err != nil {
		return nil, fmt.Errorf("ovf: certificate: %w", err)
	}
	var chain []*x509.Certificate
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("ovf: certificate: %w: %w", err, formats.ErrCorrupt)
		}
		chain = append(chain, c)
	}
	if len(chain) == 0 {
		return nil, fmt.Errorf("ovf: certificate: there is none in the file: %w", formats.ErrCorrupt)
	}
	public, ok := chain[0].PublicKey.(*rsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("ovf: certificate: a key of type %T: %w", chain[0].PublicKey, formats.ErrFormat)
	}
	h := algorithm.New()
	h.Write(manifest)
	if err := rsa.VerifyPKCS1v15(public, algorithm, h.Sum(nil), sig); err != nil {
		return nil, fmt.Errorf("ovf: the signature is not that of the manifest: %w", formats.ErrCorrupt)
	}
	return chain, nil
}

// parseSignature reads "SHA256(package.mf)= hex".
func parseSignature(line, name string) (crypto.Hash, []byte, error) {
	algorithm, rest, _ := strings.Cut(line, "(")
	file, value, ok := strings.Cut(rest, ")")
	algorithm = strings.ToUpper(strings.NewReplacer(" ", "", "-", "").Replace(algorithm))
	sig, err := hex.DecodeString(strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(value), "=")))
	for _, k := range hashes {
		if k.name != algorithm {
			continue
		}
		if !ok || err != nil || strings.TrimPrefix(strings.TrimSpace(file), "./") != name {
			break
		}
		return k.hash, sig, nil
	}
	return 0, nil, fmt.Errorf("no signature of %q: %.80q: %w", name, line, formats.ErrCorrupt)
}
