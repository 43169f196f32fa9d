/** `vimgfs umount` as a bundle of its own (scripts/build.mjs): a small one, because every unmounting loads it. */
import './signals.js'
import { startWith } from './start.js'

/** Loaded late, so that an error is reported as that of a command. The build calls this, too, to keep V8's code of it. */
export const loadAll = () => import('./umount.js')

export const start = (): void =>
  startWith(async ([, ...args]) => {
    const { run } = await loadAll()
    return run(args)
  })
