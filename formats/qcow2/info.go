package qcow2

// Info says how an image is stored.
type Info struct {
	Version       int        `json:"version"`
	DiskSize      int64      `json:"disk_size"`    // bytes
	ClusterSize   int64      `json:"cluster_size"` // bytes
	RefcountBits  int        `json:"refcount_bits"`
	Compression   string     `json:"compression"` // of the clusters that are packed, if there are any
	ExtendedL2    bool       `json:"extended_l2"`
	LazyRefcounts bool       `json:"lazy_refcounts"`
	Dirty         bool       `json:"dirty"`   // not closed: refcounts may be wrong
	Corrupt       bool       `json:"corrupt"` // a program found contradictions in it
	Backing       string     `json:"backing,omitempty"`
	BackingFormat string     `json:"backing_format,omitempty"`
	Snapshots     []Snapshot `json:"snapshots,omitempty"`
	Bitmaps       []Bitmap   `json:"bitmaps,omitempty"`
}

// Info says how the image is stored. An image can be opened with OpenOptions.Layer to be asked without
// its backing files.
func (m *Image) Info() (Info, error) {
	h := m.header
	i := Info{
		Version:       int(h.version),
		DiskSize:      h.size,
		ClusterSize:   h.clusterSize(),
		RefcountBits:  1 << h.refcountOrder,
		Compression:   "zlib",
		ExtendedL2:    h.extendedL2(),
		LazyRefcounts: h.compat&compatLazyRefcounts != 0,
		Dirty:         h.incompat&incompatDirty != 0,
		Corrupt:       h.incompat&incompatCorrupt != 0,
		Backing:       h.backing,
		BackingFormat: h.backingFmt,
	}
	if h.compression == compressionZstd {
		i.Compression = "zstd"
	}
	var err error
	if i.Snapshots, err = m.Snapshots(); err != nil {
		return i, err
	}
	i.Bitmaps, err = m.Bitmaps()
	return i, err
}
