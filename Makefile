# make demo · make test · make lint · make docs · make bench · make oracle · make sanitize · make gpu · make gpu-quick: each sets itself up
# in .venv, from constraints.txt, and builds the C++ library where there is a compiler; sanitize builds another, in a tree of
# its own. docs runs none of the pages' code, which is for test to do.
# gpu needs none: it runs the Triton and CUDA kernels on the CPU, and compiles them ahead of time, those of CUDA where nvcc
# is. gpu-quick makes a choice of that, in which every kernel meets every case, every dtype and the compiler. Where there
# is a GPU, with whatever torch and pytest there are: python -m pytest -m gpu -n 16.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PYTEST  = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal
LIBRARY = xfn/_cpu.so
SOURCES = setup.py $(wildcard xfn/csrc/*/*)
FORMATTED = $(wildcard $(foreach folder,xfn/csrc/* tests/gpu/device,$(addprefix $(folder)/*.,cpp h cu cuh)))
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

LRA = dot_product,nystrom,linformer,fourier_mix

SANITIZED = build/sanitized
SANITIZE  = -fsanitize=address,undefined -fno-sanitize-recover=undefined
# A call for every access, not code in its place; functions inlined only where they ask for it; registers given out in the
# quick way. So the compiler takes half the time, and the tests little more.
QUICK     = --param asan-instrumentation-with-call-threshold=0 -fno-inline-functions-called-once \
	-fno-inline-small-functions -fira-algorithm=priority -fira-region=one -fno-tree-pta
WATCHED   = LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0

.PHONY: demo test lint docs bench oracle sanitize gpu gpu-quick clean

demo: $(VENV)/ready $(LIBRARY)
	$(BIN)/python -m examples.tour

test: $(VENV)/ready $(LIBRARY)
	$(PYTEST) --ignore=tests/oracle --ignore=tests/gpu

lint: $(VENV)/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run --Werror $(FORMATTED)
	$(BIN)/mypy

docs: $(VENV)/ready-docs
	rm -rf build/docs build/pages && mkdir -p build && cp -rp docs build/pages
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going build/pages build/docs
	@echo "make $@: build/docs/README.html"

bench: $(VENV)/ready $(LIBRARY)
	@echo "make $@: every table, on one core that has nothing else to do: about two hours; with BENCH=--quick, a smoke test: ten minutes"
	$(BIN)/python -m benchmarks.run all $(BENCH)
	rm -rf build/lra/bench
	$(BIN)/python -m benchmarks.lra --quick --attention $(LRA) --directory build/lra/bench $(if $(BENCH),,--steps 300 --out docs/benchmarks)

oracle: $(VENV)/ready-oracle $(LIBRARY)
	$(PYTEST) tests/oracle 'tests/test_examples.py::test_it_runs_as_the_page_says[open_a_model]'

sanitize: $(VENV)/ready
	rm -rf $(SANITIZED) && mkdir -p $(SANITIZED)
	cp -rp setup.py pyproject.toml README.md LICENSE xfn tests $(SANITIZED) && rm -f $(SANITIZED)/xfn/*.so
	cd $(SANITIZED) && XFN_REQUIRE_CPU=1 NVCC=none CXX=g++ CXXFLAGS="-O1 -g1 $(SANITIZE) $(QUICK)" LDFLAGS="$(SANITIZE)" \
		$(abspath $(BIN))/python setup.py --quiet build_ext --inplace --build-temp ../objects.sanitized
	cd $(SANITIZED) && $(WATCHED) $(subst $(BIN),$(abspath $(BIN)),$(PYTEST)) --brief \
		tests/laws/test_fuzz_rows.py tests/laws/test_cpu.py tests/ops/test_attention_swift.py -k 'every_instruction or bit or swift'

gpu-quick: CHOICE = --brief
gpu gpu-quick: $(VENV)/ready $(LIBRARY)
	TRITON_INTERPRET=1 OPENBLAS_NUM_THREADS=1 $(PYTEST) $(CHOICE) -p tests.gpu.interpreter \
		-k 'triton and (not float64 or _norm or softmax) or interpreted or test_rows or mends or sanitizer' \
		tests/laws/test_kernels.py $(addprefix tests/gpu/test_,interpreted.py rows.py mends.py sanitizer.py)
	$(PYTEST) $(CHOICE) -p tests.gpu.emulator -k 'cuda and not float64 or emulated' \
		tests/laws/test_kernels.py tests/gpu/test_emulated.py
	TRITON_CACHE_DIR=$(abspath build/compiled) $(PYTEST) $(CHOICE) $(addprefix tests/gpu/test_,compiled.py hopper.py cuda.py)
	@test -f xfn/_cuda.so || echo "make $@: there is NO NVCC here, so NO CUDA KERNEL WAS COMPILED for a GPU; all else was checked"

clean:
	rm -rf $(VENV) xfn/*.so build *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(LIBRARY): $(SOURCES) | $(VENV)/ready
	$(BIN)/python setup.py --quiet build_ext --inplace

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch setuptools
	$(INSTALL) --no-build-isolation --editable '.[dev]'
	touch $@

# timm's other needs are there, but for torchvision, whose builds are for other torches.
$(VENV)/ready-oracle: $(VENV)/ready
	$(INSTALL) jax transformers
	$(INSTALL) --no-deps timm
	touch $@

$(VENV)/ready-docs: $(VENV)/ready
	$(INSTALL) furo myst-parser sphinx
	touch $@
