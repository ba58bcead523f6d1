"""How results are shown: tables in five forms made of one list of columns, sentences, figures, the HTML report."""
