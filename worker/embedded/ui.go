package embedded

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/labstack/echo/v4/middleware"
	"github.com/temporalio/ui-server/v2/server/config"
	"github.com/temporalio/ui-server/v2/server/csrf"
	"github.com/temporalio/ui-server/v2/server/route"
	"github.com/temporalio/ui-server/v2/ui"
)

// webUI is the Temporal Web UI. It is put together from the parts of its server, since the server as a
// whole opens its own listener and ends the process when it cannot.
type webUI struct {
	server *http.Server
	done   chan struct{}
}

func serveUI(o Options, frontend string) (*webUI, error) {
	h, err := uiHandler(o, frontend)
	if err != nil {
		return nil, fmt.Errorf("start Temporal Web UI: %w", err)
	}
	u := &webUI{done: make(chan struct{}), server: &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug),
	}}
	go func() {
		defer close(u.done)
		if err := u.server.Serve(o.UI); !errors.Is(err, http.ErrServerClosed) {
			o.Log.Error("the Temporal Web UI has ended", "error", err)
		}
	}()
	return u, nil
}

func (u *webUI) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if u.server.Shutdown(ctx) != nil {
		_ = u.server.Close()
	}
	<-u.done
}

func uiHandler(o Options, frontend string) (http.Handler, error) {
	provider, err := config.NewConfigProviderWithRefresh(uiConfig{&config.Config{
		TemporalGRPCAddress: frontend, DefaultNamespace: o.Namespace, EnableUI: true,
		Host: "127.0.0.1", Port: 1, // of no use, for the listener is ours, but wanted
		DisableNewsFetch: true, HideLogs: true, Distribution: "server",
		Codec: config.Codec{Endpoint: o.CodecEndpoint},
		CORS:  config.CORS{CookieInsecure: true}, // loopback is plain HTTP
	}})
	if err != nil {
		return nil, err
	}
	all, err := ui.Assets()
	if err != nil {
		return nil, err
	}
	assets, err := fs.Sub(all, "local")
	if err != nil {
		return nil, err
	}
	e := echo.New()
	e.Logger.SetOutput(io.Discard)
	e.StdLogger = log.New(io.Discard, "", 0)
	e.Use(middleware.Recover(), middleware.Gzip(), middleware.Secure(),
		csrf.EnsureTokenCookie(false), middleware.CSRFWithConfig(csrf.MiddlewareConfig(provider, false)))
	route.SetHealthRoute(e)
	if err := route.SetAPIRoutes(e, provider, nil); err != nil {
		return nil, err
	}
	if err := route.SetUIRoutes(e, "", assets, provider); err != nil {
		return nil, err
	}
	route.SetRenderRoute(e, "/")
	return localNames(e), nil
}

type uiConfig struct{ *config.Config }

func (c uiConfig) GetConfig() (*config.Config, error) { return c.Config, nil }

// localNames answers only under a name of this host. The UI has no authentication, and a page from
// anywhere could have its own name lead to 127.0.0.1.
func localNames(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
		if host != "localhost" && (err != nil || !ip.IsLoopback()) {
			http.Error(w, "the Temporal Web UI is reached as localhost only", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}
