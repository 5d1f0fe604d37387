"""The control study: does sparing relevant weights help?"""
