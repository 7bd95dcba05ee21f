"""From evidence to verdict: pure functions over frozen data, importing nothing else of the lab."""
