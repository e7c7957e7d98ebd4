"""Load tool for OpenAI-compatible servers: arrivals, workload, client, measures, reports."""
