package qcow2

import (
	"context"
	"fmt"
	"io"

	"hypersdk/formats"
)

// Layers opens files that are read through one another by someone else: each answers for what it holds
// itself, as with OpenOptions.Layer. However many they are, they keep no more tables in memory than one
// image does. It is not for use from several goroutines; the images are.
type Layers struct{ shared *shared }

// Open opens the disk stored in r, which holds size bytes.
func (l *Layers) Open(ctx context.Context, r io.ReaderAt, size int64) (*Image, error) {
	if l.shared == nil {
		l.shared = &shared{tables: newTables()}
	}
	img, err := open(ctx, r, size, formats.OpenOptions{Layer: true}, l.shared)
	if err != nil {
		return nil, err
	}
	// Pages of tables are told apart by how many files came before.
	l.shared.names = append(l.shared.names, fmt.Sprint("layer ", len(l.shared.names)))
	return img, nil
}
