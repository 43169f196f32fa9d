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
  namespace,
  noLibfuse,
  type Place,
  runIn,
  sampleImage,
  serversOf,
  until,
  launched,
} from '../support/mount.js'
import { needsRoot } from '../support/run.js'

const SAMPLE = sampleImage(t)
const skip = noFuse()
/** Systems give nobody an id from here on. */
const FIRST_UNUSED_UID = 1_000_000_000

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
    t.equal((await launched(place, ['umount', folder])).code, 0)
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

t.test('threads', { ...skip, ...needsRoot() }, async t => {
  // The limit counts all processes of a user, so this user has no others: no two tests have the same process id.
  const { user } = await namespace(t, { uid: FIRST_UNUSED_UID + process.pid })
  const outcomes = []
  for (const limit of [12, 25, 26, 27, 48]) {
    const { code, stderr } = await tryWith(t, `-u ${limit}`, [], user)
    outcomes.push(code)
    if (code !== 0) t.match(stderr, /the limit of processes is \d+.*raise it with ulimit -u/)
  }
  t.same(outcomes, outcomes.toSorted().reverse(), 'with more, it still mounts')
  t.equal(outcomes[0], 1)
  t.equal(outcomes.at(-1), 0)
})

t.test('memory', skip, async t => {
  for (const kib of [800_000, 1_200_000, 1_600_000, 2_400_000]) await tryWith(t, `-v ${kib}`)
})
