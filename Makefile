# Each target calls the script of that name in ci/, which does its own set-up: nothing need be installed first but
# Python 3.11 or later and a C compiler.
TARGETS := demo build test test-full bench lint

.PHONY: $(TARGETS)
$(TARGETS):
	@ci/$@
