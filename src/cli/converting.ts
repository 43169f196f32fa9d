/**
 * `vimgfs convert` as a bundle of its own (scripts/build.mjs): one file instead of dozens, which take longer to open than a short
 * conversion takes. It has its own copies of all classes, so it reports its errors itself.
 */
import { run as convert } from './convert.js'
import { reported } from './reporting.js'

export const run = (args: string[]): Promise<number> => reported(() => convert(args))
