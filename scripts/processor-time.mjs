/** Measures the processor time of this process and of all that it starts, servers in the background included. */
import { existsSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

/** Where the control groups of version 2 are: alone, or beside those of version 1. */
const ROOTS = ['/sys/fs/cgroup', '/sys/fs/cgroup/unified']

export class ProcessorTime {
  #root
  #group

  /** Puts this process into a control group of its own, which its children inherit. Throws if it may not. */
  constructor() {
    this.#root = ROOTS.find(root => existsSync(join(root, 'cgroup.controllers')))
    if (this.#root === undefined) throw new Error('there are no control groups of version 2')
    this.#group = join(this.#root, `vimgfs-tests-${process.pid}`)
    mkdirSync(this.#group)
    writeFileSync(join(this.#group, 'cgroup.procs'), '0')
  }

  /** Seconds so far. */
  get seconds() {
    const text = readFileSync(join(this.#group, 'cpu.stat'), 'utf8')
    return Number(/^usage_usec (\d+)$/m.exec(text)?.[1]) / 1e6
  }

  /** Removes the control group; it stays as long as a process is in it that is still ending. */
  end() {
    writeFileSync(join(this.#root, 'cgroup.procs'), '0')
    try {
      rmdirSync(this.#group)
    } catch {
      // An empty group costs nothing.
    }
  }
}
