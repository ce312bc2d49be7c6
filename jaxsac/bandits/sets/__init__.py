"""What may be played: action sets, and which of their supports is best."""
