"""Commands for people who run and develop IGen. `scripts/up` starts it, `scripts/test` tests it."""
