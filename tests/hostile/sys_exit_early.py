# verdict: failed
raise SystemExit(0)
