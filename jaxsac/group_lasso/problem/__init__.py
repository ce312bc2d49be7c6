"""The problem: its public record, its objective at a lam, certificate, support and derivatives."""
