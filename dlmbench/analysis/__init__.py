"""What finished runs say: rows and which may be compared, differences, fronts, advice. Nothing is printed here."""
