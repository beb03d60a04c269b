package embedded

import (
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"go.temporal.io/server/common/config"
	sqliteplugin "go.temporal.io/server/common/persistence/sql/sqlplugin/sqlite"
)

// Between the choice of a port and its use somebody else may take it. The server holds that to be
// fatal; it is to be an error that is tried again.
func TestAPortThatIsTakenMeanwhile(t *testing.T) {
	file := filepath.Join(t.TempDir(), dbName)
	shards, err := prepare(t.Context(), file)
	require.NoError(t, err)
	services, err := ports(netip.MustParseAddrPort("127.0.0.1:0"))
	require.NoError(t, err)
	l, err := net.Listen("tcp", address(services["history"]))
	require.NoError(t, err)
	defer l.Close()
	store := &config.SQL{PluginName: sqliteplugin.PluginName, DatabaseName: dsnPath(file), MaxConns: 1, ConnectAttributes: pragmas()}
	_, err = launch(serverConfig(store, services, shards), &logger{log: slog.New(slog.DiscardHandler)})
	require.ErrorIs(t, err, syscall.EADDRINUSE)
}

func TestChosenPortsDiffer(t *testing.T) {
	seen := map[int]bool{}
	for range 200 {
		p, err := freePort(netip.MustParseAddrPort("127.0.0.1:0"))
		require.NoError(t, err)
		require.False(t, seen[p], "the kernel gives a chosen port to nobody else")
		seen[p] = true
	}
}
