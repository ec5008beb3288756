# containerd-shim: `make` builds bin/containerd-shim; see README.md.

DENO_VERSION := 2.9.6
PBJS_VERSION := 2.7.1

TOOLS := build/tools
DENO := $(TOOLS)/node_modules/@deno/linux-x64-glibc/deno
PBJS := $(TOOLS)/node_modules/.bin/pbjs
PROTOS := $(wildcard lib/api/*.proto)

$(DENO) $(PBJS) &: Makefile
	npm install --prefix $(TOOLS) --no-save --ignore-scripts --no-audit --no-fund \
		deno@$(DENO_VERSION) protobufjs-cli@$(PBJS_VERSION) protobufjs@8.8.1 >/dev/null
	touch $(DENO) $(PBJS)

lib/api/mod.js lib/api/mod.d.ts &: $(PROTOS) $(PBJS)
	$(PBJS) --target static-module --wrap esm --dts --dependency ./protobuf.ts \
		--no-create --no-verify --no-convert --no-delimited --no-service --no-typeurl \
		--force-number --no-beautify --path lib/api --out lib/api/mod.js $(PROTOS)
	sed -i '1i /* @ts-self-types="./mod.d.ts" */' lib/api/mod.js
	sed -i '/^import Long = require/d; s|"./protobuf.ts"|"protobufjs/minimal"|' lib/api/mod.d.ts
