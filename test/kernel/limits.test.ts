/** Few descriptors, threads or bytes of memory: mounting works, or ends in one line. */
import t, { type Test } from 'tap'
import {
  attemptIn,
  HERE,
  isMounted,
  MAIN,
  mountFolder,
  NO_LOG,
  noFuse,
  noLibfuse,
  ordinaryUser,
  type Place,
  runIn,
  sampleImage,
  serversOf,
  until,
  vimgfs,
} from '../support/mount.js'

const SAMPLE = sampleImage(t)
const skip = noFuse()

interface Outcome {
  readonly code: number
  readonly stderr: string
  readonly isMounted: boolean
}

/** Mounts with a limit of ulimit's, looks whether it answers, and unmounts. */
async function tryWith(
  t: Test,
  limit: string,
  options: readonly string[] = [],
  place: Place = HERE,
): Promise<Outcome> {
  const folder = mountFolder(t, place)
  const script = `ulimit ${limit} && exec "$@"`
  const words = [process.execPath, MAIN, 'mount', ...NO_LOG, ...options, SAMPLE, folder]
  const { code, stderr } = await attemptIn(place, 'bash', ['-c', script, 'bash', ...words])
  const mounted = await isMounted(place, folder)
  t.equal(mounted, code === 0, `${limit}: exit code ${code}, ${mounted ? '' : 'not '}mounted`)
  if (mounted) {
    t.match(await runIn(place, 'ls', [folder]), 'disk.raw')
    t.equal((await vimgfs(place, ['umount', folder])).code, 0)
  } else {
    t.equal(code, 1, limit)
    t.match(stderr, /^vimgfs: [^\n]+\n$/, 'one line')
  }
  t.ok(await until(() => serversOf(folder).length === 0), 'no process is left')
  return { code, stderr, isMounted: mounted }
}

t.test('descriptors', skip, async t => {
  // Node itself needs some twenty.
  for (const limit of [24, 26, 32, 44, 56, 60, 64, 68, 72, 80, 96, 112]) {
    await tryWith(t, `-n ${limit}`)
  }
  t.ok((await tryWith(t, '-n 256')).isMounted)
})

t.test('descriptors, by libfuse', noLibfuse(), async t => {
  for (const limit of [26, 44, 56, 60, 64, 68, 80]) {
    await tryWith(t, `-n ${limit}`, ['--transport', 'libfuse'])
  }
})

t.test('threads', skip, async t => {
  const user = await ordinaryUser(t)
  // Other processes of this user would make its number of threads uncertain.
  if (user === HERE) return
  for (const missing of [1, 4, 12]) {
    // Processes that others run as this user count, too.
    const uid = await runIn(user, 'sh', ['-c', 'ps -L --no-headers -u "$(id -u)" | wc -l'])
    const { code, stderr } = await tryWith(t, `-u ${Number(uid) + 24 - missing}`, [], user)
    // Other processes of this user may start and end meanwhile, which decides where the limit is met.
    if (code !== 0) t.match(stderr, /the limit of processes is \d+.*raise it with ulimit -u/)
  }
})

t.test('memory', skip, async t => {
  for (const kib of [800_000, 1_200_000, 1_600_000, 2_400_000]) await tryWith(t, `-v ${kib}`)
})
