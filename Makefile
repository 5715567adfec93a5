# make demo, make test: everything from a bare checkout with Python 3.10+ and nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
SHARED = ../shared
DEMO = runs/demo

.PHONY: demo test check clean

$(VENV)/.installed: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements-dev.txt
	touch $@

# Synthetic sources -> the paper's dataset build -> train -> validate -> detect.
demo: $(VENV)/.installed
	rm -rf $(DEMO)
	$(BIN)/python -m data.synthetic --out $(DEMO)/sources --scenes 240 --seed 0 --size 320 320
	$(BIN)/python -m data.msld build --bijie $(DEMO)/sources/bijie --southwest $(DEMO)/sources/southwest --out $(DEMO)/msld --split grouped
	$(BIN)/python train.py --cfg models/demo.yaml --data $(DEMO)/msld/msld.yaml --hyp data/hyps/short.yaml --optimizer AdamW --epochs 40 --imgsz 160 --batch-size 16 --cache --project $(DEMO) --name train
	$(BIN)/python val.py --weights $(DEMO)/train/weights/best.pt --data $(DEMO)/msld/msld.yaml --task test --plots --gallery --save-json --project $(DEMO) --name val
	$(BIN)/python detect.py --weights $(DEMO)/train/weights/best.pt --source $(DEMO)/msld/images/test --save-txt --save-conf --project $(DEMO) --name detect
	@echo "Look at $(DEMO)/train/results.png, $(DEMO)/val and $(DEMO)/detect"

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadscope

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/mypy
	@if [ -f $(SHARED)/tools/originality.py ]; then $(BIN)/python $(SHARED)/tools/originality.py .; else echo "originality: skipped, $(SHARED) is not there"; fi

clean:
	rm -rf $(DEMO) .pytest_cache .mypy_cache .ruff_cache .hypothesis
