# containerd-shim: `make` builds bin/containerd-shim, alone in one file. See README.md.

PREFIX := /usr/local
BENCH :=
BUILD :=
FUZZ :=
SOAK :=

# As npm does on Debian: who may vouch for the registry is the machine's to say, too.
export DENO_TLS_CA_STORE ?= mozilla,system

TOOLS := build/tools
DENO := $(TOOLS)/node_modules/@deno/linux-x64-glibc/deno
PBJS := $(TOOLS)/node_modules/.bin/pbjs
PROTOS := $(wildcard lib/api/*.proto)
# Loaded at start, each for itself; mod has what is left.
API_MODULES := ttrpc shim_info mod
API := $(API_MODULES:%=lib/api/%.js) $(API_MODULES:%=lib/api/%.d.ts)
SOURCES := main.ts deno.json deno.lock $(shell find ffi lib -name '*.ts') \
	lib/standalone/entry.c lib/standalone/entry.ld

.PHONY: all check test all-tests test-1.7 demo bench fuzz soak install uninstall deb deb-check clean

all: bin/containerd-shim bin/containerd-shim.cdx.json bin/containerd-shim.8

# Their versions and hashes are locked. Deno's own install script only makes a link to this file.
LOCKED := lib/standalone/tools/package.json lib/standalone/tools/package-lock.json

$(DENO) $(PBJS) &: $(LOCKED)
	mkdir -p $(TOOLS)
	cp $(LOCKED) $(TOOLS)
	npm ci --prefix $(TOOLS) --ignore-scripts --no-audit --no-fund --loglevel=error
	touch $(DENO) $(PBJS)

$(API) &: $(PROTOS) $(PBJS)
	$(call pbjs,ttrpc,lib/api/ttrpc.proto)
	$(call pbjs,shim_info,lib/api/shim_info.proto)
	$(call pbjs,mod,$(filter-out lib/api/ttrpc.proto,$(PROTOS)))

# pbjs MODULE PROTOS: lib/api/MODULE.js and .d.ts from the messages of PROTOS
define pbjs
$(PBJS) --target static-module --wrap esm --root $(1) --dts --dependency ./protobuf.ts \
		--no-create --no-verify --no-convert --no-delimited --no-service --no-typeurl \
		--force-number --no-beautify --path lib/api --out lib/api/$(1).js $(2)
sed -i '1i /* @ts-self-types="./$(1).d.ts" */' lib/api/$(1).js
sed -i '/^import Long = require/d; s|"./protobuf.ts"|"protobufjs/minimal"|' lib/api/$(1).d.ts
endef

# For example: make BUILD="--maker copy"
bin/containerd-shim: $(SOURCES) $(API) $(DENO)
	@command -v gcc >/dev/null && command -v objcopy >/dev/null || \
		{ apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends gcc libc6-dev; }
	$(DENO) task build $(BUILD)

# What is in it.
bin/containerd-shim.cdx.json: bin/containerd-shim lib/standalone/sbom.ts
	$(DENO) task sbom

# From the tables of flags and commands.
bin/containerd-shim.8: lib/standalone/manual.ts lib/cli.ts lib/commands.ts deno.json $(DENO)
	mkdir -p bin
	$(DENO) task manual

# What checks a change, in some five minutes: tests/quick.ts.
check: all
	sh tests/setup.sh
	$(DENO) task test --quick

# Everything. First the quick bench, which fails on what cannot be noise.
test: all
	sh tests/setup.sh
	$(DENO) task bench --quick --check
	$(DENO) task test

# All tests and no bench, for a machine that has neighbours.
all-tests: all
	sh tests/setup.sh
	$(DENO) task test

# The end-to-end tests with the last containerd that has runtime v1, which the next Debian has.
CONTAINERD_1_7 := $(CURDIR)/build/containerd-1.7

test-1.7: all
	CONTAINERD=$(CONTAINERD_1_7) sh tests/setup.sh
	sh tests/trixie.sh $(CONTAINERD_1_7) containerd
	CONTAINERD=$(CONTAINERD_1_7) CONTAINERD_VERSION=1.7. $(DENO) task test tests/e2e

# Asked before anything is built or fetched, whichever runs first.
RUNS := $(filter check test all-tests test-1.7 demo bench fuzz soak,$(MAKECMDGOALS))
ifneq ($(RUNS),)
OBSTACLE := $(shell CONTAINERD='$(if $(filter test-1.7,$(RUNS)),$(CONTAINERD_1_7),$(CONTAINERD))' \
	sh tests/needs.sh "make $(RUNS)")
$(if $(OBSTACLE),$(error $(OBSTACLE)))
endif

demo: bin/containerd-shim
	sh tests/setup.sh --without-docker
	$(DENO) task demo

# For example: make bench BENCH=--quick
bench: bin/containerd-shim
	sh tests/setup.sh --without-docker
	$(DENO) task bench $(BENCH)

# For example: make fuzz FUZZ="--seed 1 --cases 5000 --way hosted"
fuzz: bin/containerd-shim
	sh tests/setup.sh --without-docker
	$(DENO) task fuzz $(FUZZ)

# Twenty minutes, or for example: make soak SOAK="--seconds 300"
soak: bin/containerd-shim
	sh tests/setup.sh --without-docker
	$(DENO) task soak $(SOAK)

# What is there is installed, without anything that built it.
install: $(if $(wildcard bin/containerd-shim.8),,all)
	DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' sh lib/packaging/install.sh install

uninstall:
	DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' sh lib/packaging/install.sh uninstall

# bin/containerd-shim-deno_VERSION_amd64.deb
# The executable is made anew: the commit may be another than when bin was made, and the code the same.
deb:
	rm -f bin/containerd-shim
	$(MAKE) all
	$(DENO) task deb

# What Debian's own check says of it.
deb-check: deb
	sh lib/packaging/check.sh

clean:
	rm -rf bin build $(API)
