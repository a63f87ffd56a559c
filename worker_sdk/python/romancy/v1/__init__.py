"""The contract `romancy.v1`, generated from `protos/romancy/v1` by `make protos`. Never edited."""
