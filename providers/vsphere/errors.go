package vsphere

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"net/url"
	"syscall"

	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"hypersdk/providers"
)

// fail is err as an Error of op on object. An Error stays what it is.
func fail(op, object string, err error) error {
	if err == nil {
		return nil
	}
	var known *providers.Error
	if errors.As(err, &known) {
		return err
	}
	e := &providers.Error{Op: "vsphere: " + op, Object: object, Reason: reason(err), Err: strip(err)}
	var status *statusError
	if errors.As(err, &status) {
		e.Retry = status.retry
	}
	e.Msg = advice(err)
	return e
}

// strip drops what net/http and the SOAP client put before an error: the method and the URL, and the
// word ServerFaultCode.
func strip(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	if soap.IsSoapFault(err) {
		if text := soap.ToSoapFault(err).String; text != "" {
			return &said{text, err}
		}
	}
	return err
}

// said is an error in other words.
type said struct {
	text string
	err  error
}

func (e *said) Error() string { return e.text }
func (e *said) Unwrap() error { return e.err }

// advice says what to do, where the error itself does not.
func advice(err error) string {
	var verify *tls.CertificateVerificationError
	var pin *thumbprintError
	switch {
	case errors.As(err, &pin):
		return "if the certificate was replaced on purpose, configure the new thumbprint"
	case errors.As(err, &verify) && len(verify.UnverifiedCertificates) > 0:
		return "the server's certificate is not trusted; set ca_file to the authority that signed it, or thumbprint to " +
			thumbprint(verify.UnverifiedCertificates[0]) + " if that is what the server itself shows"
	case errors.Is(err, http.ErrSchemeMismatch):
		return "set server to a URL that begins with http://"
	}
	return ""
}

// mayWantTLS says of a connection without TLS whether it failed as one to a server that expects TLS does:
// it is answered with status 400, or cut off while the request is still being sent.
func mayWantTLS(err error) bool {
	var status *statusError
	return errors.As(err, &status) && status.code == http.StatusBadRequest ||
		errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.EOF)
}

// reason is why err happened. It is the only such table of this provider.
func reason(err error) providers.Reason {
	if err == nil {
		return ""
	}
	var known *providers.Error
	if errors.As(err, &known) {
		return known.Reason
	}
	if errors.Is(err, context.Canceled) {
		return providers.Canceled
	}
	var fault types.HasFault
	if errors.As(err, &fault) && fault.Fault() != nil {
		return faultReason(fault.Fault())
	}
	var status *statusError
	if errors.As(err, &status) {
		return statusReason(status.code)
	}
	if untrusted(err) {
		return providers.Invalid
	}
	// Refused, reset, cut, silent, no such name: the network comes and goes.
	return providers.Unavailable
}

// untrusted says whether the server could not prove who it is. Trying again will not help.
func untrusted(err error) bool {
	var verify *tls.CertificateVerificationError
	var pin *thumbprintError
	var plain tls.RecordHeaderError
	return errors.As(err, &verify) || errors.As(err, &pin) || errors.As(err, &plain) || errors.Is(err, http.ErrSchemeMismatch)
}

func statusReason(code int) providers.Reason {
	switch code {
	case http.StatusUnauthorized:
		return providers.Auth
	case http.StatusForbidden:
		return providers.Denied
	case http.StatusNotFound, http.StatusGone:
		return providers.NotFound
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return providers.Throttled
	}
	return providers.Unavailable
}

// faultReason sorts the faults of the API. A fault that is a kind of another answers to its interface,
// so that the order of the cases matters: the particular before the general.
func faultReason(f types.BaseMethodFault) providers.Reason {
	switch f.(type) {
	case *types.NotAuthenticated:
		// A session that ends is renewed before anyone sees this; one that ends at once is the server's trouble.
		return providers.Unavailable
	case types.BaseInvalidLogin:
		return providers.Auth
	case types.BaseNoPermission, *types.NoPermissionOnHost, *types.NoPermissionOnNasVolume:
		return providers.Denied

	case *types.ManagedObjectNotFound, *types.NotFound, *types.FileNotFound:
		return providers.NotFound
	case *types.AlreadyExists, *types.DuplicateName, *types.FileAlreadyExists:
		return providers.Exists

	case *types.NoDiskSpace, *types.LimitExceeded, *types.TooManySnapshotLevels, types.BaseInsufficientResourcesFault:
		return providers.Exhausted

	case *types.RestrictedVersion, *types.NotSupported, *types.NotImplemented, *types.MethodNotFound,
		*types.MethodDisabled, *types.NotEnoughLicenses, *types.LicenseRestricted, *types.SnapshotDisabled,
		*types.MultipleSnapshotsNotSupported, *types.MemorySnapshotOnIndependentDisk, *types.SnapshotIncompatibleDeviceInVm:
		return providers.Unsupported

	case *types.TaskInProgress, *types.VAppTaskInProgress, *types.ConcurrentAccess, *types.FileLocked,
		*types.ResourceInUse, *types.ToolsUnavailable, types.BaseInvalidState, types.BaseSnapshotFault:
		return providers.Precondition

	case *types.InvalidName, *types.InvalidDatastorePath, *types.InvalidArgument, *types.InvalidProperty,
		*types.InvalidLocale, types.BaseInvalidRequest:
		return providers.Invalid
	}
	// Hosts and files that cannot be reached, tasks that others cancelled, errors inside the server.
	return providers.Unavailable
}

// isFault says whether err is the API's fault of type F.
func isFault[F types.BaseMethodFault](err error) bool {
	_, ok := faultAs[F](err)
	return ok
}

// faultAs is the API's fault of type F in err.
func faultAs[F types.BaseMethodFault](err error) (F, bool) {
	var fault types.HasFault
	if !errors.As(err, &fault) {
		var none F
		return none, false
	}
	f, ok := fault.Fault().(F)
	return f, ok
}
