package codec_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	commonpb "go.temporal.io/api/common/v1"
	failurepb "go.temporal.io/api/failure/v1"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"hypersdk/providers/connections/keys"
	"hypersdk/worker/codec"
)

const sentinel = "wh3re-is-my-Secret"

func TestRoundTrip(t *testing.T) {
	random := make([]byte, 100_000)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range random {
		random[i] = byte(rng.Uint32())
	}
	for name, p := range map[string]*commonpb.Payload{
		"nothing":        {},
		"small":          payload([]byte(`"` + sentinel + `"`)),
		"large":          payload(bytes.Repeat([]byte(sentinel), 10_000)),
		"incompressible": payload(random),
		"already ours":   {Metadata: map[string][]byte{"encoding": []byte("binary/encrypted")}, Data: []byte("x")},
	} {
		t.Run(name, func(t *testing.T) {
			c := codec.New(ring(t))
			enc, err := c.Encode([]*commonpb.Payload{p})
			require.NoError(t, err)
			require.Equal(t, "binary/encrypted", string(enc[0].Metadata["encoding"]))
			require.NotContains(t, enc[0].String(), sentinel)
			require.LessOrEqual(t, proto.Size(enc[0]), proto.Size(p)+200)
			dec, err := c.Decode(enc)
			require.NoError(t, err)
			require.True(t, proto.Equal(p, dec[0]))
		})
	}
}

func TestLargePayloadsAreCompressed(t *testing.T) {
	enc, err := codec.New(ring(t)).Encode([]*commonpb.Payload{payload(bytes.Repeat([]byte(sentinel), 10_000))})
	require.NoError(t, err)
	require.Less(t, proto.Size(enc[0]), 2_000)
}

func TestWhatIsNotEncryptedPasses(t *testing.T) {
	p := payload([]byte(`"from the server itself"`))
	dec, err := codec.New(ring(t)).Decode([]*commonpb.Payload{p, nil})
	require.NoError(t, err)
	require.Same(t, p, dec[0])
	require.Nil(t, dec[1])
}

func TestWrongKeyNamesTheKeys(t *testing.T) {
	mine, theirs := ring(t), ring(t)
	enc, err := codec.New(theirs).Encode([]*commonpb.Payload{payload([]byte(`"x"`))})
	require.NoError(t, err)
	_, err = codec.New(mine).Decode(enc)
	require.ErrorIs(t, err, keys.ErrUnknownKey)
	require.ErrorContains(t, err, mine.IDs()[0])
	require.ErrorContains(t, err, theirs.IDs()[0])
	require.Equal(t, theirs.IDs()[0], string(enc[0].Metadata["encryption-key-id"]), "the UI shows which key is needed")
}

func TestDamageIsFound(t *testing.T) {
	c := codec.New(ring(t))
	enc, err := c.Encode([]*commonpb.Payload{payload([]byte(`"x"`))})
	require.NoError(t, err)
	enc[0].Data[len(enc[0].Data)-1] ^= 1
	_, err = c.Decode(enc)
	require.ErrorIs(t, err, keys.ErrDamaged)
}

func TestValuesThroughTheDataConverter(t *testing.T) {
	dc := codec.New(ring(t)).DataConverter()
	ps, err := dc.ToPayloads(map[string]string{"password": sentinel}, 42)
	require.NoError(t, err)
	require.NotContains(t, ps.String(), sentinel)
	var m map[string]string
	var n int
	require.NoError(t, dc.FromPayloads(ps, &m, &n))
	require.Equal(t, sentinel, m["password"])
	require.Equal(t, 42, n)
}

func TestFailuresHideWhatTheySayButNotTheirType(t *testing.T) {
	fc := codec.New(ring(t)).FailureConverter()
	cause := errors.New("the cause is " + sentinel)
	f := fc.ErrorToFailure(temporal.NewNonRetryableApplicationError("message "+sentinel, "auth", cause, sentinel))
	require.NotContains(t, plain(t, f), sentinel)

	err := fc.FailureToError(f)
	var app *temporal.ApplicationError
	require.ErrorAs(t, err, &app)
	require.Equal(t, "auth", app.Type())
	require.True(t, app.NonRetryable())
	require.ErrorContains(t, err, "message "+sentinel)
	var detail string
	require.NoError(t, app.Details(&detail))
	require.Equal(t, sentinel, detail)
}

func TestHandler(t *testing.T) {
	c := codec.New(ring(t))
	enc, err := c.Encode([]*commonpb.Payload{payload([]byte(`"` + sentinel + `"`))})
	require.NoError(t, err)
	body, err := json.Marshal(&commonpb.Payloads{Payloads: enc})
	require.NoError(t, err)

	for name, tc := range map[string]struct {
		method, path, peer string
		want               int
	}{
		"a caller on this host":               {"POST", "/codec/decode", "127.0.0.1:9999", 200},
		"without the prefix":                  {"POST", "/decode", "127.0.0.1:9999", 200},
		"over IPv6":                           {"POST", "/codec/decode", "[::1]:9999", 200},
		"IPv4 in IPv6":                        {"POST", "/codec/decode", "[::ffff:127.0.0.1]:9999", 200},
		"a caller from the network":           {"POST", "/codec/decode", "192.0.2.7:1234", 403},
		"a caller whose address is not known": {"POST", "/codec/decode", "@", 403},
		"encoding is not offered":             {"POST", "/codec/encode", "127.0.0.1:9999", 404},
		"not a post":                          {"GET", "/codec/decode", "127.0.0.1:9999", 404},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest(tc.method, tc.path, bytes.NewReader(body))
			r.RemoteAddr = tc.peer
			w := httptest.NewRecorder()
			c.Handler().ServeHTTP(w, r)
			require.Equal(t, tc.want, w.Code, w.Body)
			if tc.want != http.StatusOK {
				require.NotContains(t, w.Body.String(), "payload\"")
				return
			}
			var got commonpb.Payloads
			require.NoError(t, protojson.Unmarshal(w.Body.Bytes(), &got))
			require.Contains(t, string(got.Payloads[0].Data), sentinel)
		})
	}
}

func FuzzDecode(f *testing.F) {
	file := filepath.Join(f.TempDir(), "k")
	require.NoError(f, os.WriteFile(file, []byte("hypersdk-key-1:"+strings.Repeat("A", 43)+"=\n"), 0o600))
	r, err := keys.Load(file)
	require.NoError(f, err)
	c := codec.New(r)
	sealer := r.Sealer("temporal payload v1")
	enc, err := c.Encode([]*commonpb.Payload{payload([]byte(`"x"`)), payload(bytes.Repeat([]byte("y"), 5000))})
	require.NoError(f, err)
	f.Add("binary/encrypted", enc[0].Data, false)
	f.Add("binary/encrypted", enc[1].Data, false)
	f.Add("binary/encrypted", []byte{1, 0x28, 0xb5, 0x2f, 0xfd}, true)
	f.Add("json/plain", []byte("{}"), false)
	// sealed: what somebody with the key may have sealed, so that the layers below are reached too.
	f.Fuzz(func(t *testing.T, encoding string, data []byte, sealed bool) {
		if sealed {
			data = sealer.Seal(data, nil)
		}
		p := &commonpb.Payload{Metadata: map[string][]byte{"encoding": []byte(encoding)}, Data: data}
		out, err := c.Decode([]*commonpb.Payload{p})
		if err == nil {
			require.Len(t, out, 1)
			require.NotNil(t, out[0])
		}
	})
}

func payload(data []byte) *commonpb.Payload {
	return &commonpb.Payload{Metadata: map[string][]byte{converter.MetadataEncoding: []byte("json/plain")}, Data: data}
}

// plain is everything in a failure that can be read without a key.
func plain(t *testing.T, f *failurepb.Failure) string {
	t.Helper()
	b, err := proto.Marshal(f)
	require.NoError(t, err)
	return string(b)
}

func ring(t *testing.T) *keys.Ring {
	t.Helper()
	r, err := keys.LoadOrCreate(t.TempDir())
	require.NoError(t, err)
	return r
}
