package activities

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	// maxName is the longest safe name in bytes: with what is put before and behind it (".", "-disk-120",
	// the extension, ".digests") a file name stays below the 255 bytes of common file systems.
	maxName = 190
	// markLen is what an altered name gets: an underscore at most, a dash, and eight hex digits.
	markLen = 10
)

// SafeName is the name of a file or folder for a VM's name: one path element on every file system,
// visible, printable and not too long. A name that had to be altered ends in a dash and eight hex
// digits of its digest, so that different names stay different.
func SafeName(name string) string {
	var b strings.Builder
	for _, r := range name {
		switch {
		case r == utf8.RuneError, !unicode.IsPrint(r), strings.ContainsRune(`/\:*?"<>|'`+"`$", r):
			b.WriteByte('_')
		default:
			b.WriteRune(r)
		}
	}
	safe := strings.TrimRight(strings.TrimLeft(b.String(), ". -"), ". ")
	if safe == name && safe != "" && len(safe) <= maxName && !reserved(safe) {
		return safe
	}
	for len(safe) > maxName-markLen {
		_, n := utf8.DecodeLastRuneInString(safe)
		safe = safe[:len(safe)-n]
	}
	safe = strings.TrimRight(safe, ". ")
	switch {
	case safe == "":
		safe = "vm"
	case reserved(safe):
		safe = "_" + safe
	}
	sum := sha256.Sum256([]byte(name))
	return safe + "-" + hex.EncodeToString(sum[:4])
}

// reserved says whether Windows takes a name, with any extension, for a device.
func reserved(name string) bool {
	stem, _, _ := strings.Cut(strings.ToUpper(name), ".")
	stem = strings.TrimRight(stem, " ")
	switch stem {
	case "CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$":
		return true
	}
	if len(stem) == 4 && (strings.HasPrefix(stem, "COM") || strings.HasPrefix(stem, "LPT")) {
		return stem[3] >= '0' && stem[3] <= '9'
	}
	return false
}

// plain says whether a name that came from a file or a request is one path element.
func plain(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= 255 &&
		!strings.ContainsAny(name, "/\x00")
}
