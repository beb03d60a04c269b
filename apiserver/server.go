// Package apiserver is the HTTP API: it turns calls into workflow starts, updates and queries, and
// workflows back into jobs. It keeps nothing of its own. Temporal is the truth about jobs, the
// platforms about VMs.
//
// The types of the answers are the OpenAPI document: /openapi.json is generated from them, and a copy
// is committed as openapi.json.
package apiserver

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/labstack/echo/v4"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"

	"hypersdk/apiserver/api"
	"hypersdk/workflows/job"
)

const (
	maxBody  = 10 << 20 // bytes of a request
	maxJobID = 200
	// callTimeout is how long a platform may take to answer.
	callTimeout = 2 * time.Minute
	// quickTimeout is how long Temporal may take.
	quickTimeout = 15 * time.Second
)

// Server answers the API. It is an http.Handler.
type Server struct {
	cfg       Config
	deps      Deps
	temporal  Temporal
	converter converter.DataConverter
	failures  converter.FailureConverter
	log       *slog.Logger
	caps      job.Caps
	begun     time.Time
	patience  patience
	origins   *http.CrossOriginProtection
	queries   *queries
	recent    *recent
	hub       *hub
	handler   http.Handler
}

// New makes a server. Close ends what it has under way.
func New(cfg Config, deps Deps) (*Server, error) {
	if deps.Temporal == nil || deps.Connections == nil {
		return nil, errors.New("api: Temporal and Connections are required")
	}
	s := &Server{
		cfg: cfg, deps: deps, temporal: promising(deps), converter: deps.Converter, failures: deps.Failures,
		log: deps.Log, begun: time.Now(), patience: defaultPatience(), recent: &recent{},
		caps: job.Caps{Formats: deps.Formats, Transports: transports(deps.Providers), Features: deps.Features},
	}
	s.cfg.Namespace = cmp.Or(cfg.Namespace, "default")
	s.cfg.PollInterval = cmp.Or(cfg.PollInterval, time.Second)
	if s.converter == nil {
		s.converter = converter.GetDefaultDataConverter()
	}
	if s.failures == nil {
		s.failures = temporal.GetDefaultFailureConverter()
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.cfg.DefaultFormat != "" && !slices.Contains(deps.Formats, s.cfg.DefaultFormat) {
		return nil, fmt.Errorf("api: default format %q is not one of %s", s.cfg.DefaultFormat, strings.Join(deps.Formats, ", "))
	}
	s.origins = http.NewCrossOriginProtection()
	for _, o := range cfg.AllowedOrigins {
		if err := s.origins.AddTrustedOrigin(o); err != nil {
			return nil, fmt.Errorf("api: allowed origin %q: %w", o, err)
		}
	}
	s.queries = &queries{temporal: s.temporal}
	s.hub = newHub(s)
	s.handler = s.boundary(headers(s.knownHost(s.route())))
	return s, nil
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

// Close hangs up on web sockets and followers of logs, and waits until nothing runs any more. It may
// be called again.
func (s *Server) Close() { s.hub.close() }

// route is everything that has a path.
func (s *Server) route() http.Handler {
	e := echo.New()
	e.HTTPErrorHandler = echoError
	h := newAPI(e, s.deps.Version)
	s.register(h)
	e.GET("/ws", echo.WrapHandler(http.HandlerFunc(s.webSocket)))
	documentation(e, h)

	mux := http.NewServeMux()
	if s.deps.Codec != nil {
		mux.Handle("/codec/", s.codec(http.StripPrefix("/codec", s.deps.Codec)))
	}
	mux.Handle("/", s.sameOrigin(jsonByDefault(e)))
	return mux
}

// register adds every operation, in the order of the document.
func (s *Server) register(h huma.API) {
	s.statusOperations(h)
	s.submitOperation(h)
	s.convertOperations(h)
	s.jobOperations(h)
	s.progressOperations(h)
	s.logOperation(h)
	s.controlOperations(h)
	s.vmOperations(h)
	s.importOperation(h)
	s.inventoryOperations(h)
	s.operateOperations(h)
	s.chainOperations(h)
	s.syncOperations(h)
	documentSocket(h)
	finish(h.OpenAPI())
}

func transports(kinds []api.ProviderKind) []string {
	var all []string
	for _, k := range kinds {
		all = append(all, k.Transports...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}
