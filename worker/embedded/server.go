package embedded

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"time"

	"go.temporal.io/server/common/authorization"
	"go.temporal.io/server/common/cluster"
	"go.temporal.io/server/common/config"
	"go.temporal.io/server/common/dynamicconfig"
	"go.temporal.io/server/common/membership/static"
	sqliteplugin "go.temporal.io/server/common/persistence/sql/sqlplugin/sqlite"
	"go.temporal.io/server/common/primitives"
	sqliteschema "go.temporal.io/server/schema/sqlite"
	"go.temporal.io/server/temporal"
	"google.golang.org/protobuf/types/known/durationpb"
)

const (
	clusterName = "active"
	retention   = 30 * 24 * time.Hour // of the histories of workflows that have ended
)

// startServer brings up the four services of the server, each on a port of its own.
func startServer(o Options, log *logger, addr netip.AddrPort, file string, shards int32) (srv temporal.Server, frontend string, err error) {
	store := &config.SQL{
		PluginName: sqliteplugin.PluginName, DatabaseName: dsnPath(file),
		MaxConns: 1, MaxIdleConns: 1, ConnectAttributes: pragmas(),
	}
	store.ConnectAttributes["mode"] = "rw"
	if err := createNamespace(store, o.Namespace); err != nil {
		return nil, "", fmt.Errorf("make namespace %s: %w", o.Namespace, err)
	}
	services, err := ports(addr)
	if err != nil {
		return nil, "", err
	}
	cfg := serverConfig(store, services, shards)
	if srv, err = launch(cfg, log); err != nil {
		return nil, "", fmt.Errorf("start Temporal server: %w", err)
	}
	return srv, cfg.PublicClient.HostPort, nil
}

func launch(cfg *config.Config, log *logger) (srv temporal.Server, err error) {
	log.starting.Store(true)
	defer log.starting.Store(false)
	defer func() {
		// What the server holds to be fatal it says to its logger, which is not to return.
		if r := recover(); r != nil {
			f, ok := r.(fatal)
			if !ok {
				panic(r)
			}
			srv, err = nil, f.err
		}
	}()
	authorizer, err := authorization.GetAuthorizerFromConfig(&cfg.Global.Authorization)
	if err != nil {
		return nil, err
	}
	claims, err := authorization.GetClaimMapperFromConfig(&cfg.Global.Authorization, log)
	if err != nil {
		return nil, err
	}
	hosts := map[primitives.ServiceName]static.Hosts{}
	for name, s := range cfg.Services {
		hosts[primitives.ServiceName(name)] = static.SingleLocalHost(address(s))
	}
	srv, err = temporal.NewServer(
		temporal.WithConfig(cfg),
		temporal.ForServices(temporal.DefaultServices),
		temporal.WithStaticHosts(hosts),
		temporal.WithLogger(log),
		temporal.WithAuthorizer(authorizer),
		temporal.WithClaimMapper(func(*config.Config) authorization.ClaimMapper { return claims }),
		temporal.WithDynamicConfigClient(dynamic()),
	)
	if err != nil {
		return nil, err
	}
	return srv, srv.Start()
}

func address(s config.Service) string {
	return net.JoinHostPort(s.RPC.BindOnIP, strconv.Itoa(s.RPC.GRPCPort))
}

func serverConfig(store *config.SQL, services map[string]config.Service, shards int32) *config.Config {
	frontend := services[string(primitives.FrontendService)]
	return &config.Config{
		Global: config.Global{Membership: config.Membership{MaxJoinDuration: 30 * time.Second, BroadcastAddress: frontend.RPC.BindOnIP}},
		Persistence: config.Persistence{
			DefaultStore: "default", VisibilityStore: "default", NumHistoryShards: shards,
			DataStores: map[string]config.DataStore{"default": {SQL: store}},
		},
		ClusterMetadata: &cluster.Config{
			FailoverVersionIncrement: 10, MasterClusterName: clusterName, CurrentClusterName: clusterName,
			ClusterInformation: map[string]cluster.ClusterInformation{
				clusterName: {Enabled: true, InitialFailoverVersion: 1, RPCAddress: address(frontend)},
			},
		},
		DCRedirectionPolicy: config.DCRedirectionPolicy{Policy: "noop"},
		Services:            services,
		Archival: config.Archival{
			History:    config.HistoryArchival{State: "disabled"},
			Visibility: config.VisibilityArchival{State: "disabled"},
		},
		NamespaceDefaults: config.NamespaceDefaults{Archival: config.ArchivalNamespaceDefaults{
			History:    config.HistoryArchivalNamespaceDefaults{State: "disabled"},
			Visibility: config.VisibilityArchivalNamespaceDefaults{State: "disabled"},
		}},
		PublicClient: config.PublicClient{HostPort: address(frontend)},
	}
}

// dynamic is what else differs from the server's defaults.
func dynamic() dynamicconfig.StaticClient {
	return dynamicconfig.StaticClient{
		// Priorities are strict within a partition only, and one partition is fast enough for one host.
		dynamicconfig.MatchingNumTaskqueueReadPartitions.Key():  1,
		dynamicconfig.MatchingNumTaskqueueWritePartitions.Key(): 1,
		dynamicconfig.MatchingPriorityLevels.Key():              51,
		// Lists and counts are asked for by one API, not by a crowd.
		dynamicconfig.FrontendMaxNamespaceVisibilityRPSPerInstance.Key(): 100,
		dynamicconfig.HistoryCacheHostLevelMaxSize.Key():                 8096,
		// It would call the makers of Temporal every day.
		dynamicconfig.EnableServerVersionCheck.Key(): false,
	}
}

func createNamespace(store *config.SQL, name string) error {
	ns, err := sqliteschema.NewNamespaceConfig(clusterName, name, false, nil)
	if err != nil {
		return err
	}
	ns.Detail.Config.Retention = durationpb.New(retention)
	return sqliteschema.CreateNamespaces(store, ns) // leaves one that exists as it is
}

// ports finds a port for every service. The frontend alone has a known one; none serves HTTP.
func ports(addr netip.AddrPort) (map[string]config.Service, error) {
	services := map[string]config.Service{}
	for _, name := range []primitives.ServiceName{
		primitives.FrontendService, primitives.HistoryService, primitives.MatchingService, primitives.WorkerService,
	} {
		want := netip.AddrPortFrom(addr.Addr(), 0)
		if name == primitives.FrontendService {
			want = addr
		}
		port, err := freePort(want)
		if err != nil {
			return nil, err
		}
		services[string(name)] = config.Service{RPC: config.RPC{GRPCPort: port, BindOnIP: addr.Addr().String()}}
	}
	return services, nil
}

// freePort is the port of want, or any free one for port 0; an error where it is taken.
//
// A chosen port is connected to once and closed from the server's side. It then rests in TIME_WAIT,
// where the kernel gives it to nobody who asks for any port, while a listener may still ask for it by
// number.
func freePort(want netip.AddrPort) (int, error) {
	l, err := net.Listen("tcp", want.String())
	if errors.Is(err, syscall.EADDRINUSE) {
		return 0, fmt.Errorf("address %s is taken by another program: %w", want, syscall.EADDRINUSE)
	}
	if err != nil {
		return 0, fmt.Errorf("listen on %s: %w", want, err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	if want.Port() != 0 {
		return port, nil
	}
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return 0, fmt.Errorf("listen on %s: %w", want, err)
	}
	defer client.Close() // after the server's side
	server, err := l.Accept()
	if err != nil {
		return 0, fmt.Errorf("listen on %s: %w", want, err)
	}
	return port, server.Close()
}
