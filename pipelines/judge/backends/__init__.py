"""Where a judge's answers come from: an HTTP server, a model in process, vLLM under Ray Data, or nowhere."""
