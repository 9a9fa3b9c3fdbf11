"""Rounds of the five families on paper: what they launch, and what that would cost on Apple's chips."""
