"""Rollouts by servers of vLLM, on this machine or on others (docs/VLLM.md).

    options.py     the table `backend_options`
    backend.py     the policy's side: what is asked of whom, under which weights
    servers.py     the servers: who is there, who is least loaded, who has died
    client.py      one request to one server, over HTTP

vLLM itself is not needed here; what the servers load is `ttrl_pop.sample.vllm.plugin`.
"""
