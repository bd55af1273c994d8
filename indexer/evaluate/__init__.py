"""How good a corpus's vectors are, by what the corpus itself knows: labels, links, reading sessions.

corpus       articles without duplicates, and what is known of them
baselines    what scores articles: vectors, TF-IDF, popularity, chance
tasks        what the scores are measured by
bootstrap    how sure the figures are
run          all of it, and the recipe to recommend
command      the command line
"""
