"""The problem: arguments, record, null model, certificate, support and derivatives."""
