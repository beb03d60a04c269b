package daemon

import "runtime/debug"

// Version is what a program calls itself: the release that the linker was told, or the commit it was
// built from.
func Version(linked string) string {
	if linked != "" && linked != "dev" {
		return linked
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && len(s.Value) >= 12 {
				return "dev-" + s.Value[:12]
			}
		}
	}
	return "dev"
}
