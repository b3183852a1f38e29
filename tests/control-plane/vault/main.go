// Command vault is a Vault for tests: the real core with its storage in memory, unsealed, with nothing mounted yet.
// It listens on a free loopback port, prints one JSON line when it answers, and ends on SIGTERM or SIGINT.
//
// It is a local test server and never shipped; see README.md for the licence.
package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/helper/namespace"
	vaulthttp "github.com/hashicorp/vault/http"
	"github.com/hashicorp/vault/internalshared/configutil"
	"github.com/hashicorp/vault/sdk/physical/inmem"
	"github.com/hashicorp/vault/vault"
)

// requestLimit is Vault's own default for the size of a request.
const requestLimit = 32 << 20

// ready is what is printed once requests are answered.
type ready struct {
	URL       string `json:"url"`
	RootToken string `json:"root_token"`
	UnsealKey string `json:"unseal_key"` // base64, as sys/unseal takes it
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "vault:", err)
		os.Exit(1)
	}
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	core, err := newCore()
	if err != nil {
		return err
	}
	rootToken, unsealKey, err := open(core)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	// The kernel takes connections from here on.
	line := ready{URL: "http://" + listener.Addr().String(), RootToken: rootToken, UnsealKey: unsealKey}
	if err := json.NewEncoder(os.Stdout).Encode(line); err != nil {
		return err
	}
	return serve(ctx, listener, core)
}

func newCore() (*vault.Core, error) {
	logger := hclog.New(&hclog.LoggerOptions{Level: hclog.Warn, Output: os.Stderr})
	storage, err := inmem.NewInmem(nil, logger)
	if err != nil {
		return nil, err
	}
	return vault.NewCore(&vault.CoreConfig{
		Physical:           storage,
		StorageType:        "inmem",
		Logger:             logger,
		DisableMlock:       true,
		BuiltinRegistry:    registry{},
		LogicalBackends:    secretEngines,
		CredentialBackends: authMethods,
	})
}

// open initialises the core with one share of one key and unseals it.
func open(core *vault.Core) (rootToken, unsealKey string, err error) {
	ctx := namespace.RootContext(context.Background())
	made, err := core.Initialize(ctx, &vault.InitParams{
		BarrierConfig: &vault.SealConfig{SecretShares: 1, SecretThreshold: 1, StoredShares: 1},
	})
	if err != nil {
		return "", "", fmt.Errorf("initialise: %w", err)
	}
	share := made.SecretShares[0]
	unsealKey = base64.StdEncoding.EncodeToString(share)
	unsealed, err := core.Unseal(share)
	if err != nil {
		return "", "", fmt.Errorf("unseal: %w", err)
	}
	if !unsealed {
		return "", "", errors.New("unseal: one share of one did not do")
	}
	return made.RootToken, unsealKey, nil
}

// serve answers until the context ends.
func serve(ctx context.Context, listener net.Listener, core *vault.Core) error {
	server := &http.Server{
		Handler: vaulthttp.Handler.Handler(&vault.HandlerProperties{
			Core:           core,
			ListenerConfig: &configutil.Listener{Address: listener.Addr().String(), MaxRequestSize: requestLimit},
		}),
		ReadHeaderTimeout: 10 * time.Second,
	}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
