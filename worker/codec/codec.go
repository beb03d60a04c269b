// Package codec keeps what workflows carry out of sight: payloads and failures are compressed and
// encrypted before they leave the process for the Temporal server, its database and its Web UI.
//
// What Temporal needs for its own work stays readable: ids and types of workflows and activities, task
// queues, search attributes, and the type of a failure.
package codec

import (
	"errors"
	"fmt"

	"github.com/klauspost/compress/zstd"
	commonpb "go.temporal.io/api/common/v1"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"
	"google.golang.org/protobuf/proto"

	"hypersdk/providers/connections/keys"
)

const (
	encoding = "binary/encrypted" // what the Web UI and the tools of Temporal know to be encrypted
	metaKey  = "encryption-key-id"

	label = "temporal payload v1"

	compressFrom = 1 << 10
	maxPayload   = 64 << 20 // of a payload before it is encoded; Temporal itself refuses more than 2 MiB
)

// How the sealed bytes are packed: the first of them.
const (
	packedPlain byte = iota
	packedZstd
)

// Codec encrypts payloads. It may be used from several goroutines.
type Codec struct {
	sealer *keys.Sealer
	enc    *zstd.Encoder
	dec    *zstd.Decoder
}

var _ converter.PayloadCodec = (*Codec)(nil)

// New is a codec with the keys of an installation.
func New(ring *keys.Ring) *Codec {
	// Without a stream to write to or read from neither starts goroutines, and only a wrong option
	// makes an error.
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(2),
		zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(256<<10))
	if err != nil {
		panic(err)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(2), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(maxPayload))
	if err != nil {
		panic(err)
	}
	return &Codec{sealer: ring.Sealer(label), enc: enc, dec: dec}
}

// DataConverter is the SDK's own with this codec around it.
func (c *Codec) DataConverter() converter.DataConverter {
	return converter.NewCodecDataConverter(converter.GetDefaultDataConverter(), c)
}

// FailureConverter encrypts the messages and stack traces of failures too.
func (c *Codec) FailureConverter() converter.FailureConverter {
	return temporal.NewDefaultFailureConverter(temporal.DefaultFailureConverterOptions{
		DataConverter: c.DataConverter(), EncodeCommonAttributes: true,
	})
}

// Encode compresses what is large and encrypts everything.
func (c *Codec) Encode(payloads []*commonpb.Payload) ([]*commonpb.Payload, error) {
	out := make([]*commonpb.Payload, len(payloads))
	for i, p := range payloads {
		if size := proto.Size(p); size > maxPayload {
			return nil, fmt.Errorf("codec: encode: a payload of %d bytes is larger than %d", size, maxPayload)
		}
		b, err := proto.Marshal(p)
		if err != nil {
			return nil, fmt.Errorf("codec: encode: %w", err)
		}
		out[i] = &commonpb.Payload{
			Metadata: map[string][]byte{
				converter.MetadataEncoding: []byte(encoding),
				metaKey:                    []byte(c.sealer.KeyID()), // for people; the sealed bytes name it too
			},
			Data: c.sealer.Seal(c.pack(b), nil),
		}
	}
	return out, nil
}

// Decode is the inverse of Encode. What another encoding made, as the server itself does for what it
// starts, comes back as it is.
func (c *Codec) Decode(payloads []*commonpb.Payload) ([]*commonpb.Payload, error) {
	out := make([]*commonpb.Payload, len(payloads))
	for i, p := range payloads {
		if string(p.GetMetadata()[converter.MetadataEncoding]) != encoding {
			out[i] = p
			continue
		}
		packed, err := c.sealer.Open(p.GetData(), nil)
		if err != nil {
			return nil, fmt.Errorf("codec: decode: %w", err)
		}
		b, err := c.unpack(packed)
		if err != nil {
			return nil, fmt.Errorf("codec: decode: %w", err)
		}
		out[i] = &commonpb.Payload{}
		if err := proto.Unmarshal(b, out[i]); err != nil {
			return nil, fmt.Errorf("codec: decode: %w", err)
		}
	}
	return out, nil
}

func (c *Codec) pack(b []byte) []byte {
	if len(b) >= compressFrom {
		if z := c.enc.EncodeAll(b, []byte{packedZstd}); len(z) <= len(b) {
			return z
		}
	}
	return append([]byte{packedPlain}, b...)
}

func (c *Codec) unpack(b []byte) ([]byte, error) {
	if len(b) == 0 {
		return nil, errors.New("an empty message")
	}
	switch b[0] {
	case packedPlain:
		return b[1:], nil
	case packedZstd:
		return c.dec.DecodeAll(b[1:], nil)
	default:
		return nil, fmt.Errorf("packed in a way (%d) that this version does not know", b[0])
	}
}
