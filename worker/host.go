package worker

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"hypersdk/activities"
)

// hostFile holds the id of a host, in its data folder: who has the folder has the files and the logs.
const hostFile = "host-id"

var validHost = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

// hostID is the id in the data folder, made the first time: the name of the machine, for people, and
// something random.
func hostID(data string) (string, error) {
	path := filepath.Join(data, hostFile)
	b, err := os.ReadFile(path)
	if err == nil {
		id := strings.TrimSpace(string(b))
		if !validHost.MatchString(id) {
			return "", fmt.Errorf("%s does not hold a host id", path)
		}
		return id, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	var random [6]byte
	if _, err := rand.Read(random[:]); err != nil {
		return "", err
	}
	id := machine() + "-" + hex.EncodeToString(random[:])
	return id, activities.WriteFile(path, []byte(id+"\n"))
}

// machine is the name of this machine as far as an id can hold it.
func machine() string {
	name, err := os.Hostname()
	if err != nil {
		return "host"
	}
	name, _, _ = strings.Cut(strings.ToLower(name), ".")
	name = strings.Trim(regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(name, "-"), "-")
	if name == "" {
		return "host"
	}
	return name[:min(len(name), 40)]
}
