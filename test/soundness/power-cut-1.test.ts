/** Power cuts, over a third of the kinds of images: files run beside each other. */
import { cutSuite } from './cut-suite.js'
import { RECIPES } from './kinds.js'

cutSuite(RECIPES.filter((_, index) => index % 3 === 0))
