package activities

import (
	"context"
	"errors"
	"fmt"

	"hypersdk/cbt"
	"hypersdk/providers"
)

// sought is what could be found out about the changes of a disk since the newest point of its chain: one of
// the three. It is decided here for the export that copies them and for the analysis that foretells it.
type sought struct {
	changes   *cbt.Changes // that the tracker tells
	untracked string       // why nobody can tell although nothing is wrong: the disk is compared with the chain
	full      string       // why it is to be copied in full: there is doubt about the tracker
}

// seek asks the tracker of a platform, nil for one without, what changed of a disk up to a snapshot. A question
// that failed is no answer, but an error.
func seek(ctx context.Context, tracker providers.ChangeTracker, ref providers.DiskRef, d AppendDisk, old cbt.Disk) (sought, error) {
	switch {
	case tracker == nil:
		return sought{untracked: "the platform does not track changes"}, nil
	case d.ChangeID == "":
		return sought{untracked: "its changes are not tracked"}, nil
	case old.ChangeID == "":
		return sought{untracked: "its changes were not tracked yet at the newest point"}, nil
	case old.Size != d.Size:
		return sought{full: fmt.Sprintf("the disk was resized from %d to %d bytes", old.Size, d.Size)}, nil
	}
	c, err := tracker.Changes(ctx, ref, old.ChangeID)
	switch {
	case errors.Is(err, providers.TrackingLost):
		return sought{full: "its changes cannot be told: " + clip(sentenceOf(err), 600)}, nil
	case errors.Is(err, providers.Unsupported):
		return sought{untracked: "the platform does not track its changes"}, nil
	case err != nil:
		return sought{}, err
	}
	return sought{changes: &c}, nil
}

// sentenceOf is what an error of a provider says to people.
func sentenceOf(err error) string {
	var e *providers.Error
	if errors.As(err, &e) && e.Msg != "" {
		return e.Msg
	}
	return err.Error()
}

// newestOf is a disk at the newest point of a chain; nil where it has none, or not that disk.
func newestOf(m cbt.Manifest, disk providers.DiskID) *cbt.Disk {
	newest := m.Newest()
	if newest == nil {
		return nil
	}
	for i := range newest.Disks {
		if newest.Disks[i].Disk == string(disk) {
			return &newest.Disks[i]
		}
	}
	return nil
}
