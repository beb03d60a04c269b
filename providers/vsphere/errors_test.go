package vsphere

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"hypersdk/providers"
)

func TestEveryFaultHasItsReason(t *testing.T) {
	for _, c := range []struct {
		fault types.BaseMethodFault
		want  providers.Reason
	}{
		{&types.InvalidLogin{}, providers.Auth},
		{&types.PasswordExpired{}, providers.Auth},
		{&types.NoPermission{}, providers.Denied},
		{&types.NotAuthenticated{}, providers.Unavailable},
		{&types.NoPermissionOnHost{}, providers.Denied},

		{&types.ManagedObjectNotFound{}, providers.NotFound},
		{&types.NotFound{}, providers.NotFound},
		{&types.FileNotFound{}, providers.NotFound},
		{&types.DuplicateName{}, providers.Exists},
		{&types.AlreadyExists{}, providers.Exists},
		{&types.FileAlreadyExists{}, providers.Exists},

		{&types.NoDiskSpace{}, providers.Exhausted},
		{&types.InsufficientResourcesFault{}, providers.Exhausted},
		{&types.InsufficientStorageSpace{}, providers.Exhausted},
		{&types.LimitExceeded{}, providers.Exhausted},
		{&types.TooManySnapshotLevels{}, providers.Exhausted},

		{&types.RestrictedVersion{}, providers.Unsupported},
		{&types.NotSupported{}, providers.Unsupported},
		{&types.NotImplemented{}, providers.Unsupported},
		{&types.MethodNotFound{}, providers.Unsupported},
		{&types.LicenseRestricted{}, providers.Unsupported},
		{&types.SnapshotDisabled{}, providers.Unsupported},
		{&types.MemorySnapshotOnIndependentDisk{}, providers.Unsupported},

		{&types.TaskInProgress{}, providers.Precondition},
		{&types.VAppTaskInProgress{}, providers.Precondition},
		{&types.ConcurrentAccess{}, providers.Precondition},
		{&types.FileLocked{}, providers.Precondition},
		{&types.ResourceInUse{}, providers.Precondition},
		{&types.InvalidState{}, providers.Precondition},
		{&types.InvalidPowerState{}, providers.Precondition},
		{&types.QuestionPending{}, providers.Precondition},
		{&types.SnapshotLocked{}, providers.Precondition},
		{&types.ApplicationQuiesceFault{}, providers.Precondition},
		{&types.ToolsUnavailable{}, providers.Precondition},

		{&types.InvalidName{}, providers.Invalid},
		{&types.InvalidArgument{}, providers.Invalid},
		{&types.InvalidRequest{}, providers.Invalid},

		{&types.FileFault{}, providers.Unavailable},
		{&types.CannotAccessFile{}, providers.Unavailable},
		{&types.HostCommunication{}, providers.Unavailable},
		{&types.HostNotConnected{}, providers.Unavailable},
		{&types.Timedout{}, providers.Unavailable},
		{&types.RequestCanceled{}, providers.Unavailable},
		{&types.SystemError{}, providers.Unavailable},
	} {
		name := fmt.Sprintf("%T", c.fault)
		require.Equal(t, c.want, reason(soap.WrapVimFault(c.fault)), "%s of a call", name)
		require.Equal(t, c.want, reason(newTaskError(&types.LocalizedMethodFault{Fault: c.fault})), "%s of a task", name)
		wire := &soap.Fault{String: "it went wrong"}
		wire.Detail.Fault = c.fault
		require.Equal(t, c.want, reason(soap.WrapSoapFault(wire)), "%s on the wire", name)
	}
	require.Equal(t, providers.Unavailable, reason(newTaskError(nil)))
	require.Equal(t, providers.Unavailable, reason(soap.WrapSoapFault(&soap.Fault{String: "a fault of no known kind"})))
}

func TestEveryOtherErrorHasItsReason(t *testing.T) {
	wrapped := func(err error) error { return &url.Error{Op: "Post", URL: "https://vc/sdk", Err: err} }
	for _, c := range []struct {
		err  error
		want providers.Reason
	}{
		{nil, ""},
		{&statusError{code: 401}, providers.Auth},
		{&statusError{code: 403}, providers.Denied},
		{&statusError{code: 404}, providers.NotFound},
		{&statusError{code: 429}, providers.Throttled},
		{&statusError{code: 503}, providers.Throttled},
		{&statusError{code: 500}, providers.Unavailable},
		{&statusError{code: 502}, providers.Unavailable},
		{&statusError{code: 302}, providers.Unavailable},

		{wrapped(context.Canceled), providers.Canceled},
		{wrapped(context.DeadlineExceeded), providers.Unavailable},
		{wrapped(io.ErrUnexpectedEOF), providers.Unavailable},
		{wrapped(os.ErrDeadlineExceeded), providers.Unavailable},
		{wrapped(&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}), providers.Unavailable},
		{wrapped(&net.DNSError{Err: "no such host", Name: "vc", IsNotFound: true}), providers.Unavailable},

		{wrapped(&tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}), providers.Invalid},
		{wrapped(&tls.CertificateVerificationError{Err: x509.HostnameError{Certificate: &x509.Certificate{}, Host: "vc"}}), providers.Invalid},
		{wrapped(&thumbprintError{}), providers.Invalid},
		{wrapped(http.ErrSchemeMismatch), providers.Invalid},
		{wrapped(tls.RecordHeaderError{Msg: "first record does not look like a TLS handshake"}), providers.Invalid},

		{fmt.Errorf("wrapped: %w", &providers.Error{Reason: providers.Corrupt}), providers.Corrupt},
	} {
		require.Equal(t, c.want, reason(c.err), "%v", c.err)
	}
}

func TestFailTellsWhatToDo(t *testing.T) {
	require.NoError(t, fail("x", "y", nil))

	err := fail("snapshot", "vm-42", newTaskError(&types.LocalizedMethodFault{Fault: &types.TaskInProgress{}, LocalizedMessage: "Another task is in progress."}))
	require.EqualError(t, err, "vsphere: snapshot vm-42: the task failed: Another task is in progress.")
	require.ErrorIs(t, err, providers.Precondition)

	err = fail("snapshot", "vm-42", newTaskError(&types.LocalizedMethodFault{Fault: &types.NoDiskSpace{}}))
	require.EqualError(t, err, "vsphere: snapshot vm-42: the task failed: NoDiskSpace", "a fault without words is named")

	wire := &soap.Fault{Code: "ServerFaultCode", String: "Cannot complete login due to an incorrect user name or password."}
	wire.Detail.Fault = types.InvalidLogin{}
	err = fail("log in", "vc", soap.WrapSoapFault(wire))
	require.EqualError(t, err, "vsphere: log in vc: Cannot complete login due to an incorrect user name or password.")
	require.ErrorIs(t, err, providers.Auth)

	cert := &x509.Certificate{Raw: []byte("der")}
	err = fail("connect", "vc", &url.Error{Op: "Post", URL: "https://vc/sdk", Err: &tls.CertificateVerificationError{
		UnverifiedCertificates: []*x509.Certificate{cert}, Err: x509.UnknownAuthorityError{Cert: cert}}})
	require.ErrorContains(t, err, "set ca_file")
	require.ErrorContains(t, err, "thumbprint to "+thumbprint(cert))
	require.NotContains(t, err.Error(), "https://")

	err = fail("read disk", "d", &statusError{code: http.StatusServiceUnavailable, retry: 7 * time.Second})
	require.ErrorIs(t, err, providers.Throttled)
	require.Equal(t, 7*time.Second, providers.RetryAfter(err))

	first := &providers.Error{Op: "vsphere: find VM", Reason: providers.NotFound, Msg: "gone"}
	require.Equal(t, error(first), fail("other", "thing", first), "an error keeps what it said first")
	require.True(t, errors.Is(fail("x", "y", &url.Error{Err: context.Canceled}), context.Canceled))
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)
	for header, want := range map[string]time.Duration{
		"":                              0,
		"30":                            30 * time.Second,
		"-5":                            0,
		"soon":                          0,
		"999999999999":                  0,
		"86400":                         time.Hour,
		"Sat, 21 Nov 2026 10:02:00 GMT": 2 * time.Minute,
		"Sat, 21 Nov 2026 09:00:00 GMT": 0,
	} {
		require.Equal(t, want, retryAfter(header, now), header)
	}
}
