// Package all lists the providers that there are.
package all

import (
	"hypersdk/providers"
	"hypersdk/providers/vsphere"
)

// Drivers is every kind of provider that this program has.
func Drivers() providers.Set {
	return providers.Set{vsphere.Driver()}
}
