package vmdk_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"hypersdk/formats"
	"hypersdk/formats/formatstest"
	"hypersdk/formats/vmdk"
)

// readable is how much of a disk the fuzzers read: whatever an image claims to be.
const readable = 1 << 20

// readSome opens, reads and checks an image, with b as every file beside it.
func readSome(t *testing.T, b []byte) {
	var beside func(string) (formats.Opened, error)
	beside = func(name string) (formats.Opened, error) {
		return formats.Opened{ReaderAt: bytes.NewReader(b), Closer: io.NopCloser(nil), Size: int64(len(b)), Name: name, Beside: beside}, nil
	}
	for _, o := range []formats.OpenOptions{{}, {Layer: true, Beside: beside}, {Beside: beside}} {
		img, err := vmdk.Open(t.Context(), bytes.NewReader(b), int64(len(b)), o)
		if err != nil {
			mustRefuse(t, err)
			continue
		}
		n := 0
		for e, err := range img.Extents(t.Context(), 0, img.Size()) {
			if err != nil || e.Len <= 0 {
				mustRefuse(t, err)
				break
			}
			if n++; n > 1000 {
				break
			}
		}
		_, err = io.CopyN(io.Discard, io.NewSectionReader(img, 0, img.Size()), readable)
		mustRefuse(t, err)
		if p, ok := img.(formats.PackedReader); ok {
			for off := int64(0); off < min(img.Size(), readable); off += 64 << 10 {
				if _, _, err := p.ReadPacked(t.Context(), off, nil); err != nil {
					mustRefuse(t, err)
				}
			}
		}
		if err := img.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := vmdk.Check(t.Context(), bytes.NewReader(b), int64(len(b)), formats.OpenOptions{Beside: beside}); err != nil {
		mustRefuse(t, err)
	}
	_, _ = vmdk.Inspect(t.Context(), bytes.NewReader(b), int64(len(b)))
}

// mustRefuse: what is wrong with an image is told as that.
func mustRefuse(t *testing.T, err error) {
	t.Helper()
	if err != nil && !isRefusal(err) && !errors.Is(err, io.EOF) && !errors.Is(err, formats.ErrAbsent) {
		t.Fatalf("neither a refusal nor an answer: %v", err)
	}
}

// FuzzOpen changes files of every kind that has one file.
func FuzzOpen(f *testing.F) {
	d := formatstest.NewDisk(41, 200<<10)
	f.Add(sparseFile(f, d))
	stream, _ := esxiStream(3)
	f.Add(stream)
	f.Add([]byte(plainDescriptor))
	f.Add(cowdExtent(5000, 0, 512*5))
	f.Add(seExtent(4096*8, map[int64]uint64{0: 3 << 60}, 1))
	f.Fuzz(func(t *testing.T, b []byte) { readSome(t, b) })
}

// FuzzHeaders puts fuzzed headers before tables and grains that are right.
func FuzzHeaders(f *testing.F) {
	d := formatstest.NewDisk(42, 200<<10)
	files := [][]byte{sparseFile(f, d), cowdExtent(5000, 0, 512*5), seExtent(4096*8, map[int64]uint64{0: 3 << 60}, 1)}
	stream, _ := esxiStream(3)
	files = append(files, stream)
	for i, b := range files {
		f.Add(byte(i), b[:sector], uint16(0))
	}
	f.Fuzz(func(t *testing.T, kind byte, part []byte, at uint16) {
		b := bytes.Clone(files[int(kind)%len(files)])
		copy(b[min(int(at), len(b)):], part)
		readSome(t, b)
	})
}

// FuzzDescriptor: any text is a descriptor or refused.
func FuzzDescriptor(f *testing.F) {
	f.Add(plainDescriptor)
	f.Add("version=1\nCID=1\nparentCID=2\nparentFileNameHint=\"x\"\ncreateType=\"vmfs\"\nNOACCESS 7 ZERO\nRW 1 FLAT \"a\" 5\n")
	f.Fuzz(func(t *testing.T, text string) { readSome(t, []byte(text)) })
}

// FuzzStream: chunks lie within the disk, whatever the stream says.
func FuzzStream(f *testing.F) {
	stream, _ := esxiStream(3)
	f.Add(stream)
	d := formatstest.NewDisk(43, 200<<10)
	f.Add(encoded(f, d, formats.CreateOptions{}))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := vmdk.Stream(t.Context(), bytes.NewReader(b))
		if err != nil {
			mustRefuse(t, err)
			return
		}
		defer s.Close()
		for range 1000 {
			c, err := s.Next(t.Context())
			if err != nil {
				mustRefuse(t, err)
				return
			}
			if c.Off < 0 || c.Len <= 0 || c.Off+c.Len > s.Size() || c.Data != nil && int64(len(c.Data)) != c.Len {
				t.Fatalf("a chunk of %d bytes at %d of %d", c.Len, c.Off, s.Size())
			}
		}
	})
}
