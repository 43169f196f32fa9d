/**
 * `vimgfs mount` as a bundle of its own (scripts/build.mjs): each server keeps its bundle in memory, and needs no code of other
 * commands.
 */
import './signals.js'
import { startWith } from './start.js'

/** Loads what mounting needs. The build calls it, to keep V8's code of that. */
export const loadAll = () =>
  Promise.all([
    import('./mount.js'),
    import('./launch.js'),
    import('./passphrase.js'),
    import('../log.js'),
    import('../fs/server.js'),
  ])

export const start = (): void =>
  startWith(async ([, ...args]) => {
    const { run } = await import('./mount.js')
    return run(args)
  })
