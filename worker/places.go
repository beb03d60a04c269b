package worker

import (
	"context"

	"go.temporal.io/sdk/worker"

	"hypersdk/activities"
)

// placeTuner lets a worker ask for a job only while its host has a place for it.
func placeTuner(p *activities.Places) (worker.WorkerTuner, error) {
	one, err := worker.NewFixedSizeSlotSupplier(1)
	if err != nil {
		return nil, err
	}
	return worker.NewCompositeTuner(worker.CompositeTunerOptions{
		WorkflowSlotSupplier: one, LocalActivitySlotSupplier: one, NexusSlotSupplier: one, SessionActivitySlotSupplier: one,
		ActivitySlotSupplier: placeSupplier{p},
	})
}

// placeSupplier hands out the free places of a host as slots. The activity that uses one turns it into
// a place that lasts as long as the job.
type placeSupplier struct{ places *activities.Places }

func (s placeSupplier) ReserveSlot(ctx context.Context, _ worker.SlotReservationInfo) (*worker.SlotPermit, error) {
	if err := s.places.Reserve(ctx); err != nil {
		return nil, err
	}
	return &worker.SlotPermit{}, nil
}

// TryReserveSlot is for eager activities, of which this queue has none.
func (s placeSupplier) TryReserveSlot(worker.SlotReservationInfo) *worker.SlotPermit { return nil }

func (s placeSupplier) MarkSlotUsed(worker.SlotMarkUsedInfo) {}

func (s placeSupplier) ReleaseSlot(worker.SlotReleaseInfo) { s.places.Release() }

func (s placeSupplier) MaxSlots() int { return s.places.Max() }
