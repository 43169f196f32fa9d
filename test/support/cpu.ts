/** Processor time, for limits on how much work something is: unlike the clock's, a busy machine adds little. */
import { readFileSync } from 'node:fs'

const MS_PER_TICK = 10

/** What all threads of this process have used so far, in milliseconds. */
export function cpuMs(): number {
  const { user, system } = process.cpuUsage()
  return (user + system) / 1000
}

/** What the processes have used that this one has started and that have ended, in milliseconds. */
export function childrenCpuMs(): number {
  const stat = readFileSync('/proc/self/stat', 'latin1')
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  // cutime and cstime (proc_pid_stat(5)), counted from the state.
  return (Number(fields[13]) + Number(fields[14])) * MS_PER_TICK
}
