"""The edge for those who speak HTTP: events come in by the HTTP binding of CloudEvents."""
