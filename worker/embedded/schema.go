package embedded

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.temporal.io/server/schema"
	sqliteschema "go.temporal.io/server/schema/sqlite"
)

// The server sets up a SQLite database, but neither records nor raises the version of its schema. The
// table hypersdk_meta does: two schema versions, and the number of history shards, which is for ever.
const (
	metaTable = `CREATE TABLE hypersdk_meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)`
	getMeta   = `SELECT value FROM hypersdk_meta WHERE key = ?`
	setMeta   = `INSERT INTO hypersdk_meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value`

	metaShards = "history_shards"
	newShards  = 4 // one shard alone makes everything wait for its single lock
)

// part is one of the two schemas in the file.
type part struct{ key, dir, version string }

func parts() []part {
	return []part{
		{"temporal_schema", "sqlite/v3/temporal", sqliteschema.Version},
		{"visibility_schema", "sqlite/v3/visibility", sqliteschema.VisibilityVersion},
	}
}

// pragmas of the server's connection. There is one at a time: SQLite has a single writer, and several
// that wait for it are slower and fail. It does not wait for the disk either, which would make everybody
// wait while a disk image is being written back: a commit survives the end of the process at once, and
// the end of the machine once [Server.Durable] has returned. The file is whole in any case.
func pragmas() map[string]string {
	return map[string]string{"journal_mode": "wal", "synchronous": "1", "busy_timeout": "10000"}
}

// dsnPath is a file name as it stands in a SQLite URI.
func dsnPath(file string) string { return (&url.URL{Path: file}).EscapedPath() }

func openDB(file string) (*sql.DB, error) {
	// The journal mode is not set: that would change a file which is then refused.
	q := url.Values{"mode": {"rwc"}, "_txlock": {"immediate"}, "_pragma": {"synchronous=2", "busy_timeout=10000"}}
	db, err := sql.Open("sqlite", "file:"+dsnPath(file)+"?"+q.Encode())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	return db, nil
}

// prepare makes the database where there is none and raises the schema of an older one, of which it
// keeps a copy. It refuses a file that it would spoil. It answers the number of history shards.
func prepare(ctx context.Context, file string) (shards int32, err error) {
	if err := touch(file); err != nil {
		return 0, fmt.Errorf("database %s cannot be opened: %w", file, plainly(err))
	}
	db, err := openDB(file)
	if err != nil {
		return 0, fmt.Errorf("database %s cannot be opened: %w", file, err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	tables, err := tables(ctx, db)
	switch {
	case err != nil:
		return 0, fmt.Errorf("database %s cannot be read: %w", file, err)
	case len(tables) == 0:
		if err := inTx(ctx, db, create); err != nil {
			return 0, fmt.Errorf("database %s cannot be made: %w", file, err)
		}
	case !slices.Contains(tables, "hypersdk_meta"):
		return 0, fmt.Errorf("database %s was not made by this program; move it away or choose another data folder", file)
	default:
		if err := upgrade(ctx, db, file); err != nil {
			return 0, err
		}
	}
	if err := db.QueryRowContext(ctx, getMeta, metaShards).Scan(&shards); err != nil {
		return 0, fmt.Errorf("database %s has no readable %s: %w", file, metaShards, err)
	}
	return shards, nil
}

// touch makes a file that only its owner may read, where there is none; SQLite makes those beside it
// alike.
func touch(file string) error {
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

func tables(ctx context.Context, db *sql.DB) ([]string, error) {
	rows, err := db.QueryContext(ctx, `SELECT name FROM sqlite_master WHERE type = 'table'`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var names []string
	for rows.Next() {
		var n string
		if err := rows.Scan(&n); err != nil {
			return nil, err
		}
		names = append(names, n)
	}
	return names, rows.Err()
}

// create sets up everything, in one transaction: a file is whole or empty.
func create(ctx context.Context, tx *sql.Tx) error {
	for _, p := range parts() {
		if err := runScript(ctx, tx, path.Join(p.dir, "schema.sql")); err != nil {
			return err
		}
	}
	if _, err := tx.ExecContext(ctx, metaTable); err != nil {
		return err
	}
	for _, p := range parts() {
		if _, err := tx.ExecContext(ctx, setMeta, p.key, p.version); err != nil {
			return err
		}
	}
	_, err := tx.ExecContext(ctx, setMeta, metaShards, strconv.Itoa(newShards))
	return err
}

func upgrade(ctx context.Context, db *sql.DB, file string) error {
	var scripts []string
	var raised []part
	for _, p := range parts() {
		var was string
		if err := db.QueryRowContext(ctx, getMeta, p.key).Scan(&was); err != nil {
			return fmt.Errorf("database %s has no readable %s: %w", file, p.key, err)
		}
		have, ok := parseVersion(was)
		want, _ := parseVersion(p.version)
		switch {
		case !ok:
			return fmt.Errorf("database %s has the unreadable %s %q", file, p.key, was)
		case want.less(have):
			return fmt.Errorf("database %s was written by a newer version of this program (%s %s, this one knows %s); use that version", file, p.key, was, p.version)
		case have.less(want):
			s, err := scriptsBetween(p.dir, have, want)
			if err != nil {
				return err
			}
			scripts, raised = append(scripts, s...), append(raised, p)
		}
	}
	if len(raised) == 0 {
		return nil
	}
	backup := fmt.Sprintf("%s.before-%s", file, time.Now().UTC().Format("20060102T150405.000"))
	err := touch(backup)
	if err == nil {
		_, err = db.ExecContext(ctx, `VACUUM INTO ?`, backup)
	}
	if err != nil {
		return fmt.Errorf("database %s cannot be copied before its schema is raised: %w", file, err)
	}
	err = inTx(ctx, db, func(ctx context.Context, tx *sql.Tx) error {
		for _, s := range scripts {
			if err := runScript(ctx, tx, s); err != nil {
				return err
			}
		}
		for _, p := range raised {
			if _, err := tx.ExecContext(ctx, setMeta, p.key, p.version); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("the schema of database %s cannot be raised (it is unchanged): %w", file, err)
	}
	return nil
}

// schemaVersion is "0.11": numbers, so that 0.9 comes before 0.11.
type schemaVersion [2]int

func (v schemaVersion) less(w schemaVersion) bool { return slices.Compare(v[:], w[:]) < 0 }

func parseVersion(s string) (v schemaVersion, ok bool) {
	major, minor, found := strings.Cut(s, ".")
	var err1, err2 error
	v[0], err1 = strconv.Atoi(major)
	v[1], err2 = strconv.Atoi(minor)
	return v, found && err1 == nil && err2 == nil
}

// scriptsBetween lists the scripts that lead from one version to another, in order.
func scriptsBetween(dir string, from, to schemaVersion) ([]string, error) {
	entries, err := fs.ReadDir(schema.Assets(), path.Join(dir, "versioned"))
	if err != nil {
		return nil, fmt.Errorf("no way from schema %v to %v: %w", from, to, err)
	}
	var steps []schemaVersion
	for _, e := range entries {
		v, ok := parseVersion(strings.TrimPrefix(e.Name(), "v"))
		if ok && from.less(v) && !to.less(v) {
			steps = append(steps, v)
		}
	}
	slices.SortFunc(steps, func(a, b schemaVersion) int { return slices.Compare(a[:], b[:]) })
	if len(steps) == 0 || steps[len(steps)-1] != to {
		return nil, fmt.Errorf("no way from schema %v to %v", from, to)
	}
	var scripts []string
	for _, v := range steps {
		folder := path.Join(dir, "versioned", fmt.Sprintf("v%d.%d", v[0], v[1]))
		b, err := fs.ReadFile(schema.Assets(), path.Join(folder, "manifest.json"))
		if err != nil {
			return nil, err
		}
		var manifest struct{ SchemaUpdateCqlFiles []string }
		if err := json.Unmarshal(b, &manifest); err != nil {
			return nil, fmt.Errorf("%s: %w", folder, err)
		}
		for _, f := range manifest.SchemaUpdateCqlFiles {
			scripts = append(scripts, path.Join(folder, f))
		}
	}
	return scripts, nil
}

func runScript(ctx context.Context, tx *sql.Tx, name string) error {
	b, err := fs.ReadFile(schema.Assets(), name)
	if err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, string(b)); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func inTx(ctx context.Context, db *sql.DB, do func(context.Context, *sql.Tx) error) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := do(ctx, tx); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}

// checkpoint moves what is in the write-ahead log into the file, so that a copy of the one file is a
// copy of all.
func checkpoint(file string) error {
	db, err := openDB(file)
	if err != nil {
		return err
	}
	_, err = db.Exec(`PRAGMA wal_checkpoint(TRUNCATE)`)
	return errors.Join(err, db.Close())
}
