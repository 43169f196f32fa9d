/** Power cuts in scenarios over the layouts of cow images. */
import t from 'tap'
import { cutRandom, ONLY } from '../../soundness/cut-suite.js'
import { cowSubject, KINDS } from './subjects.js'

for (const kind of KINDS.filter(({ title }) => title.includes(ONLY))) {
  t.test(kind.title, t => {
    const { judged } = cutRandom(cowSubject(kind))
    t.ok(judged > 50, `${judged} cuts`)
    t.end()
  })
}
