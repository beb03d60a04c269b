package activities

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/providers"
)

func TestVerifyFindsADifference(t *testing.T) {
	b := newLargeBench(t)
	_, err := b.prepare()
	require.NoError(t, err)
	got, err := b.transfer()
	require.NoError(t, err)
	f, err := os.OpenFile(b.path(".web-01-disk-1.raw.part"), os.O_RDWR, 0)
	require.NoError(t, err)
	var one [1]byte
	_, err = f.ReadAt(one[:], 33*mib+7)
	require.NoError(t, err)
	one[0] ^= 1
	_, err = f.WriteAt(one[:], 33*mib+7)
	require.NoError(t, err)
	require.NoError(t, f.Close())

	_, err = b.verify(got)
	app := failure(t, err)
	require.True(t, app.NonRetryable())
	require.Equal(t, string(providers.Corrupt), app.Type())
	require.Contains(t, app.Message(), "the target differs from what was received")
	require.Contains(t, app.Message(), "34603008", "the first stretch that differs is named")
}

func TestVerifyWantsTheRightDigest(t *testing.T) {
	b := newBench(t)
	_, err := b.prepare()
	require.NoError(t, err)
	got, err := b.transfer()
	require.NoError(t, err)
	got.Digest = formats.Digest{1}.String()
	_, err = b.verify(got)
	require.Equal(t, string(providers.Corrupt), failure(t, err).Type())
}
