"""Where requests come from: arrival processes, lengths, trace readers."""
