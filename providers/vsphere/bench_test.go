package vsphere_test

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"hypersdk/providers"
	"hypersdk/providers/vsphere"
	"hypersdk/providers/vsphere/vspheretest"
)

// BenchmarkList lists 1,000 VMs.
func BenchmarkList(b *testing.B) {
	s, err := vspheretest.New(vspheretest.Options{Dir: b.TempDir(), VMs: vspheretest.GeneratedVMs(1000)})
	require.NoError(b, err)
	defer s.Close()
	p, err := vsphere.Open(b.Context(), config(s), providers.Env{Log: slog.New(slog.DiscardHandler)})
	require.NoError(b, err)
	defer p.Close()
	for b.Loop() {
		n := 0
		for _, err := range p.VMs(b.Context(), providers.Filter{}) {
			require.NoError(b, err)
			n++
		}
		require.Equal(b, 1000, n)
	}
}

// BenchmarkFind finds one VM of 1,000 by its name.
func BenchmarkFind(b *testing.B) {
	s, err := vspheretest.New(vspheretest.Options{Dir: b.TempDir(), VMs: vspheretest.GeneratedVMs(1000)})
	require.NoError(b, err)
	defer s.Close()
	p, err := vsphere.Open(b.Context(), config(s), providers.Env{Log: slog.New(slog.DiscardHandler)})
	require.NoError(b, err)
	defer p.Close()
	for b.Loop() {
		vm, err := p.VM(b.Context(), "vm-00500")
		require.NoError(b, err)
		require.Equal(b, "vm-00500", vm.Name)
	}
}

// BenchmarkRead reads a disk of 256 MiB of data over plain HTTP, server and client in one process.
func BenchmarkRead(b *testing.B) {
	const size = 256 * mib
	s, err := vspheretest.New(vspheretest.Options{Dir: b.TempDir(), VMs: []vspheretest.VM{
		{Name: "vm", Disks: []vspheretest.Disk{{Size: size, Content: vspheretest.Generated(1, size)}}},
	}})
	require.NoError(b, err)
	defer s.Close()
	p, err := vsphere.Open(b.Context(), config(s), providers.Env{Log: slog.New(slog.DiscardHandler)})
	require.NoError(b, err)
	defer p.Close()
	vm, err := p.VM(b.Context(), "vm")
	require.NoError(b, err)
	snap, err := p.Snapshot(b.Context(), vm.ID, providers.SnapshotOptions{Key: "bench"})
	require.NoError(b, err)
	im, err := p.OpenDisk(b.Context(), providers.DiskRef{VM: vm.ID, Snapshot: snap.ID, Disk: snap.Disks[0].ID})
	require.NoError(b, err)
	defer im.Close()
	for _, chunk := range []int64{mib, 4 * mib} {
		for _, readers := range []int{1, 4} {
			b.Run(fmt.Sprintf("%d MiB by %d", chunk/mib, readers), func(b *testing.B) {
				buffers := make(chan []byte, readers)
				for range readers {
					buffers <- make([]byte, chunk)
				}
				b.SetBytes(size)
				for b.Loop() {
					var g errgroup.Group
					g.SetLimit(readers)
					for off := int64(0); off < size; off += chunk {
						g.Go(func() error {
							p := <-buffers
							defer func() { buffers <- p }()
							if _, err := im.ReadAt(p, off); err != nil && !errors.Is(err, io.EOF) {
								return err
							}
							return nil
						})
					}
					require.NoError(b, g.Wait())
				}
			})
		}
	}
}
