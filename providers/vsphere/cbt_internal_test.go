package vsphere

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi/vim25/types"

	"hypersdk/cbt"
	"hypersdk/providers"
)

// An answer that makes no sense could hide a change.
func TestAnswersThatMakeNoSense(t *testing.T) {
	const size = 1 << 20
	areas := func(list ...int64) (out []types.DiskChangeExtent) {
		for i := 0; i < len(list); i += 2 {
			out = append(out, types.DiskChangeExtent{Start: list[i], Length: list[i+1]})
		}
		return out
	}
	for name, c := range map[string]struct {
		info types.DiskChangeInfo
		ok   bool
	}{
		"nothing changed":               {types.DiskChangeInfo{StartOffset: 4096, Length: size - 4096}, true},
		"an area":                       {types.DiskChangeInfo{StartOffset: 4096, Length: 8192, ChangedArea: areas(4096, 512)}, true},
		"an area beyond the end":        {types.DiskChangeInfo{StartOffset: 4096, Length: size, ChangedArea: areas(size-1, 65536)}, true},
		"another start":                 {types.DiskChangeInfo{StartOffset: 0, Length: size}, false},
		"no progress":                   {types.DiskChangeInfo{StartOffset: 4096}, false},
		"backwards":                     {types.DiskChangeInfo{StartOffset: 4096, Length: -1}, false},
		"far longer than the disk":      {types.DiskChangeInfo{StartOffset: 4096, Length: 1 << 62}, false},
		"an area before the disk":       {types.DiskChangeInfo{StartOffset: 4096, Length: 8192, ChangedArea: areas(-1, 512)}, false},
		"an area behind the disk":       {types.DiskChangeInfo{StartOffset: 4096, Length: 8192, ChangedArea: areas(size, 512)}, false},
		"an area of nothing":            {types.DiskChangeInfo{StartOffset: 4096, Length: 8192, ChangedArea: areas(8192, 0)}, false},
		"an area of less than nothing":  {types.DiskChangeInfo{StartOffset: 4096, Length: 8192, ChangedArea: areas(8192, -5)}, false},
		"an area that ends with no end": {types.DiskChangeInfo{StartOffset: 4096, Length: 8192, ChangedArea: areas(8192, 1<<63-1)}, true},
	} {
		t.Run(name, func(t *testing.T) {
			var out cbt.Set
			err := (&query{}).page(&out, c.info, 4096, size)
			if c.ok {
				require.NoError(t, err)
				require.LessOrEqual(t, out.End(), int64(size))
				return
			}
			require.ErrorIs(t, err, providers.TrackingLost)
		})
	}
}

func TestPointsOfOneTracking(t *testing.T) {
	const id = "52 9b 4d f1 6c 8d f5 5d-90 8f 3d c3 5e c4 1f 7a/"
	for name, c := range map[string]struct {
		since, to cbt.Point
		why       string
	}{
		"the next":          {id + "9", id + "10", ""},
		"the same":          {id + "9", id + "9", ""},
		"going back":        {id + "10", id + "9", "reverted"},
		"another":           {"53" + cbt.Point(id[2:]) + "9", id + "10", "began anew"},
		"all":               {"*", id + "10", "no change id"},
		"no number":         {id, id + "10", "no change id"},
		"less than nothing": {id + "-1", id + "10", "no change id"},
		"no end":            {cbt.Point(strings.Repeat("5", 1<<20)) + "/1", id + "10", "no change id"},
	} {
		t.Run(name, func(t *testing.T) {
			err := (&query{}).follows(c.since, c.to)
			if c.why == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, providers.TrackingLost)
			require.ErrorContains(t, err, c.why)
			require.Less(t, len(err.Error()), 1000)
		})
	}
}
